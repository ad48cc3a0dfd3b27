"""How fast text becomes token ids on one core: `FastEncoder` against `encode_batch_fast` of `tokenizers`.

    python benchmarks/encode.py [--tokenizer DIR] [--input F.jsonl.gz...] [--megabytes 20] [--rounds 3]

Within a round all take turns over the same texts; a figure is the median of the rounds, in MB of UTF-8 a second of
processor time, which on an idle machine is the time that passes. `warm` is an encoder that has met these texts before,
`cold` one that has met none and has its memo still to fill. Prints tables and, as the last line, one JSON object.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import DEMO_TEXT, in_turns, median, new_parser, parse_options, print_figures, seconds_of, train_tokenizer
from prepare import sample
from sides.prepare_ways import texts_of

from malmoi.data_prep.tokenizer.train import load_tokenizer

BATCH = 1000


@dataclass(frozen=True)
class Speed:
    """Speeds in MB of UTF-8 a second, on one core; `ratio` is `warm` to `tokenizers`."""

    file: str
    megabytes: float
    tokens: int
    tokenizers: float
    cold: float
    warm: float
    ratio: float


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    files: list[Speed]
    import_seconds: float
    first_call_seconds: float
    build_seconds: float
    peak_mebibytes: int


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the time that all threads of this process compute; each way has one."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(tokenizer: Any, new_encoder: Callable[[], Any], file: Path, megabytes: float, rounds: int) -> Speed:
    """Encode the first `megabytes` of a file."""
    with tempfile.TemporaryDirectory() as folder:
        text = sample(file, Path(folder), megabytes, 0)
        texts = list(texts_of(text.file))
    batches = [texts[first : first + BATCH] for first in range(0, len(texts), BATCH)]
    warm = new_encoder()
    tokens = sum(len(warm.encode(batch)[0]) for batch in batches)

    def theirs() -> float:
        return processor_seconds(lambda: [tokenizer.encode_batch_fast(b, add_special_tokens=False) for b in batches])

    def ours(encoder: Any) -> float:
        return processor_seconds(lambda: [encoder.encode(batch) for batch in batches])

    ways = {"tokenizers": theirs, "cold": lambda: ours(new_encoder()), "warm": lambda: ours(warm)}
    seconds = in_turns(ways, rounds, warm_up=0)
    speed = {way: round(text.megabytes / median(taken, 9), 1) for way, taken in seconds.items()}
    ratio = round(speed["warm"] / speed["tokenizers"], 1)
    return Speed(file.name, round(text.megabytes, 1), tokens, **speed, ratio=ratio)


def main() -> None:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--tokenizer", type=Path, help="folder of one of Malmoi's; none: one is trained on the input")
    parser.add_argument("--input", type=Path, nargs="+", default=sorted(DEMO_TEXT.glob("*.jsonl.gz")))
    parser.add_argument("--megabytes", type=float, default=20, help="most text of a file, in MB of UTF-8")
    options = parse_options(parser)
    if options.quick:
        options.megabytes = 0.2
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # read at `tokenizers`' first work
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(options.tokenizer or train_tokenizer(options.input, Path(folder)))
    began = time.perf_counter()
    from malmoi.data_prep.tokenizer.fast_encode import FastEncoder

    imported = time.perf_counter() - began

    def new_encoder() -> FastEncoder:
        encoder = FastEncoder.for_tokenizer(tokenizer)
        if encoder is None:
            sys.exit("this tokenizer is of another pipeline than Malmoi's: nothing to compare")
        return encoder

    encoder = new_encoder()
    first_call, build = seconds_of(lambda: encoder.encode(["안녕하세요"])), seconds_of(new_encoder)
    speeds = [measure(tokenizer, new_encoder, file, options.megabytes, options.rounds) for file in options.input]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print_figures(Figures(speeds, round(imported, 2), round(first_call, 2), round(build, 3), peak))


if __name__ == "__main__":
    main()
