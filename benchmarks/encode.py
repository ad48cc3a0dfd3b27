"""How fast text becomes token ids on one core: `FastEncoder` against `encode_batch_fast` of `tokenizers`.

    python benchmarks/encode.py --tokenizer DIR --input F.jsonl.gz... [--megabytes 20] [--rounds 3]

Each round runs both, one after the other, over the same texts; a figure is the median of the rounds, in MB of
UTF-8 a second of processor time, which on an idle machine is the time that passes. `warm` is an encoder that
has met these texts before, `cold` one that has met none and has its memo still to fill. Prints a table and,
as the last line, one JSON object.
"""

import argparse
import gzip
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read when `tokenizers` first encodes

BATCH = 1000


@dataclass(frozen=True)
class Figures:
    """Speeds in MB of UTF-8 a second, on one core; `ratio` is `warm` to `tokenizers`."""

    file: str
    megabytes: float
    tokens: int
    tokenizers: float
    cold: float
    warm: float
    ratio: float


def texts_of(file: Path, most_bytes: int) -> list[str]:
    texts = []
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            most_bytes -= len(texts[-1].encode())
            if most_bytes <= 0:
                break
    return texts


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()  # all threads'; each side has one
    work()
    return time.process_time() - start


def measure(tokenizer: Any, file: Path, most_bytes: int, rounds: int) -> Figures:
    from data_prep.fast_encode import FastEncoder

    def fresh() -> FastEncoder:
        encoder = FastEncoder.for_tokenizer(tokenizer)
        if encoder is None:
            sys.exit("this tokenizer is of another pipeline than Malmoi's: nothing to compare")
        return encoder

    texts = texts_of(file, most_bytes)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    batches = [texts[first : first + BATCH] for first in range(0, len(texts), BATCH)]
    warm_encoder = fresh()
    tokens = sum(len(warm_encoder.encode(batch)[0]) for batch in batches)
    taken: dict[str, list[float]] = {"tokenizers": [], "cold": [], "warm": []}
    for _ in range(rounds):
        cold_encoder = fresh()
        taken["tokenizers"].append(
            seconds(lambda: [tokenizer.encode_batch_fast(b, add_special_tokens=False) for b in batches])
        )
        taken["cold"].append(seconds(lambda: [cold_encoder.encode(b) for b in batches]))  # noqa: B023 - called at once
        taken["warm"].append(seconds(lambda: [warm_encoder.encode(b) for b in batches]))
    speed = {name: round(megabytes / statistics.median(runs), 1) for name, runs in taken.items()}
    ratio = round(speed["warm"] / speed["tokenizers"], 1)
    return Figures(file.name, round(megabytes, 1), tokens, **speed, ratio=ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of one of Malmoi's")
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="JSON lines, also .gz")
    parser.add_argument("--megabytes", type=float, default=20, help="most text of a file, in MB of UTF-8")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    from data_prep.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer)
    start = time.perf_counter()
    from data_prep.fast_encode import FastEncoder

    imported = time.perf_counter() - start
    encoder = FastEncoder.for_tokenizer(tokenizer)
    if encoder is None:
        sys.exit("this tokenizer is of another pipeline than Malmoi's: nothing to compare")
    first_call = seconds(lambda: encoder.encode(["안녕하세요"]))
    rebuilt = seconds(lambda: FastEncoder.for_tokenizer(tokenizer))

    print(f"{'file':28} {'MB':>6} {'tokenizers':>11} {'cold':>7} {'warm':>7} {'ratio':>6}")
    rows = []
    for file in options.input:
        row = measure(tokenizer, file, int(options.megabytes * 1e6), options.rounds)
        speeds = f"{row.tokenizers:11.1f} {row.cold:7.1f} {row.warm:7.1f} {row.ratio:6.1f}"
        print(f"{row.file:28} {row.megabytes:6.1f} {speeds}", flush=True)
        rows.append(row)
    print(
        json.dumps(
            {
                "files": [asdict(row) for row in rows],
                "import_seconds": round(imported, 2),
                "first_call_seconds": round(first_call, 2),
                "build_seconds": round(rebuilt, 3),
                "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
