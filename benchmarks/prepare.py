"""How fast raw text becomes shards on disk: `malmoi prepare` against what the field uses.

    python benchmarks/prepare.py --corpus F.jsonl.gz... [--tokenizer DIR] [--megabytes 50] [--rounds 1] [--repeat 1000]

Every way reads the same JSON lines, normalises, encodes with the same tokenizer and writes tokens to disk, on all
cores that this process may use, each in a process of its own that is timed from its start to its end. `MB/s` is
text over that time. A way's `steady` speed is what more text costs: the text that a larger input has more, over the
time that it takes longer, so that starting Python and loading libraries does not count, which takes every way one to
five seconds; `start` is the time left for it. The larger input is the whole text, the smaller a fifth of it; for
Malmoi, whose start is most of its time there, the text eight times over and the whole. `malmoi is` compares steady
speeds. The ways take turns within a round; a figure is the median of the rounds. Malmoi runs on a single core too,
for its scaling, and, with --repeat, on the text repeated up to so many MB, for its memory. Memory is the peak of all
the processes' proportional set sizes together. Ways that need a package which is not installed are left out, and
said to be. --fill makes a short text long enough to be timed; that helps every way that remembers words. Prints a table
and, as the last line, one JSON object.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
BLOCK_SIZE = 1024


@dataclass(frozen=True)
class Figures:
    """One way on one corpus: medians of the rounds."""

    way: str
    corpus: str
    cores: int
    megabytes: float
    megabytes_a_second: float
    """Of the text named, from the start of the process to its end."""
    steady_megabytes_a_second: float
    start_seconds: float
    peak_mebibytes: float
    times_slower: float
    """Malmoi's steady speed on all cores, divided by this one's."""


@dataclass(frozen=True)
class Text:
    """JSON lines on disk, and the MB of UTF-8 text in them."""

    file: Path
    megabytes: float


@dataclass(frozen=True)
class Pair:
    """One way on a smaller and a larger text."""

    texts: tuple[Text, Text]
    seconds: tuple[float, float]
    peak: int
    """Bytes."""

    @property
    def steady(self) -> float:
        """MB a second of what the larger text has more."""
        more = self.texts[1].megabytes - self.texts[0].megabytes
        return more / max(1e-3, self.seconds[1] - self.seconds[0])

    def seconds_of(self, text: Text) -> float:
        return self.seconds[self.texts.index(text)]


@dataclass(frozen=True)
class Memory:
    """Malmoi on a text many times over."""

    corpus: str
    megabytes: float
    seconds: float
    peak_mebibytes: float


def texts_of(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def malmoi(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    from configs.schema import CorpusSettings, DataSettings
    from data_prep.build import prepare_shards

    prepare_shards(CorpusSettings(input=(str(file),)), DataSettings(workers=cores), tokenizer, out)


def load(tokenizer: Path) -> Any:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


def encode_batch_fast(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """`tokenizers` on all cores, numpy's tofile."""
    import numpy as np

    encoder, batch = load(tokenizer), list[str]()
    bos, eos = encoder.token_to_id("<s>"), encoder.token_to_id("</s>")
    with (out / "tokens.bin").open("wb") as stream:

        def write() -> None:
            for encoding in encoder.encode_batch_fast(batch, add_special_tokens=False):
                np.array([bos, *encoding.ids, eos], dtype=np.uint16).tofile(stream)
            batch.clear()

        for text in texts_of(file):
            batch.append(text)
            if len(batch) == 1000:
                write()
        write()


def run_clm(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """The path of transformers' run_clm.py: `datasets`, map to ids, map to blocks."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(str(tokenizer))
    raw = load_dataset("json", data_files=str(file), split="train", cache_dir=str(out))

    def tokenize(examples: Any) -> Any:
        return encoder(examples["text"])

    def group(examples: Any) -> Any:
        joined = {key: sum(map(list, examples[key]), []) for key in examples}  # noqa: RUF017 - as run_clm does it
        total = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
        blocks = {key: [ids[i : i + BLOCK_SIZE] for i in range(0, total, BLOCK_SIZE)] for key, ids in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    ids = raw.map(tokenize, batched=True, num_proc=cores, remove_columns=raw.column_names)
    ids.map(group, batched=True, num_proc=cores)


def datatrove(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """datatrove's Megatron writer, a task a core."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    parts = out / "parts"
    parts.mkdir()
    streams = [(parts / f"{number}.jsonl").open("w") for number in range(cores)]
    for number, line in enumerate(file.open()):
        streams[number % cores].write(line)
    for stream in streams:
        stream.close()
    writer = MegatronDocumentTokenizer(
        str(out / "tokens"), tokenizer_name_or_path=str(tokenizer / "tokenizer.json"), eos_token="</s>"
    )
    LocalPipelineExecutor(
        [JsonlReader(str(parts)), writer], tasks=cores, workers=cores, logging_dir=str(out / "log")
    ).run()


def tutorial(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """The tutorial's path: all the text in one string, encoded at once, pickled."""
    import pickle

    ids = load(tokenizer).encode("\n".join(texts_of(file)), add_special_tokens=False).ids
    blocks = [ids[i : i + BLOCK_SIZE] for i in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE)]
    with (out / "blocks.pickle").open("wb") as stream:
        pickle.dump(blocks, stream)


WAYS: dict[str, tuple[Callable[[Path, Path, Path, int], None], str]] = {
    "malmoi": (malmoi, "numpy"),
    "encode_batch_fast": (encode_batch_fast, "tokenizers"),
    "run_clm": (run_clm, "datasets"),
    "datatrove": (datatrove, "datatrove"),
    "tutorial": (tutorial, "tokenizers"),
}


def memory_of(process: psutil.Process) -> int:
    """Bytes that a process and its children hold, shared pages shared out."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def timed(way: str, file: Path, tokenizer: Path, cores: int) -> tuple[float, int]:
    """Seconds from start to end of a process that goes this way, and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--way", way, str(file), str(tokenizer), out, str(cores)]
        # A single core is one for all the processes of a way, the one that reads and writes too.
        affinity = sorted(os.sched_getaffinity(0))[:cores]
        begun = time.perf_counter()
        started = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, affinity),
        )
        process, peak = psutil.Process(started.pid), 0
        while started.poll() is None:
            try:
                peak = max(peak, memory_of(process))
            except psutil.Error:
                break
            time.sleep(0.25)
        _, log = started.communicate()
        if started.returncode:
            sys.exit(f"{way} failed:\n{log.decode()[-2000:]}")
        return time.perf_counter() - begun, peak


def sample(corpus: Path, folder: Path, megabytes: float, repeat_to: float) -> Text:
    """JSON lines of the first so many MB of a corpus's text, repeated up to `repeat_to` MB; and how many they are."""
    opened = (gzip.open if corpus.suffix == ".gz" else open)(corpus, "rt", encoding="utf-8")
    lines, held = [], 0
    with opened as stream:
        for line in stream:
            lines.append(line)
            held += len(json.loads(line)["text"].encode())
            if held >= megabytes * 1e6:
                break
    times = max(1, round(repeat_to * 1e6 / held))
    file = folder / f"{corpus.name.split('.')[0]}-{megabytes:g}-{times}.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(times):
            stream.writelines(lines)
    return Text(file, times * held / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder; none: one of 10,000 tokens is trained on the corpora")
    parser.add_argument("--megabytes", type=float, default=50, help="most text of each corpus")
    parser.add_argument("--fill", type=float, default=0, help="MB to which a shorter text is repeated, for every way")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeat", type=float, default=0, help="MB to which the text is repeated, for memory")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    figures: list[Figures] = []
    memory: list[Memory] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        tokenizer = options.tokenizer or trained(options.corpus, folder / "tokenizer")
        from importlib.util import find_spec

        missing = [way for way in options.ways if find_spec(WAYS[way][1]) is None]
        ways = [(way, cores) for way in options.ways if way not in missing] + [("malmoi", 1)]
        for corpus in options.corpus:
            whole = sample(corpus, folder, options.megabytes, options.fill)
            part = options.megabytes if options.fill else whole.megabytes / 5
            small = sample(corpus, folder, part, whole.megabytes / 5)
            large = sample(corpus, folder, options.megabytes, 8 * whole.megabytes)
            runs: dict[tuple[str, int], list[Pair]] = {way: [] for way in ways}
            timed("malmoi", small.file, tokenizer, cores)  # machine code is compiled once an installation
            for _ in range(options.rounds):
                for way, used in ways:
                    pair = (whole, large) if way == "malmoi" else (small, whole)
                    taken = [timed(way, text.file, tokenizer, used) for text in pair]
                    runs[way, used].append(Pair(pair, (taken[0][0], taken[1][0]), max(peak for _, peak in taken)))
            figures += figures_of(corpus.name.split(".")[0], whole, runs, cores)
            for text in (small, large):
                text.file.unlink()
            if options.repeat:
                big = sample(corpus, folder, options.megabytes, options.repeat)
                seconds, peak = timed("malmoi", big.file, tokenizer, cores)
                memory.append(
                    Memory(
                        corpus.name.split(".")[0], round(big.megabytes, 1), round(seconds, 1), round(peak / 2**20, 1)
                    )
                )
                big.file.unlink()
    show(figures, memory)
    result = {"figures": [asdict(figure) for figure in figures], "memory": [asdict(m) for m in memory]}
    print(json.dumps({**result, "left_out": missing}))


def trained(corpora: list[Path], folder: Path) -> Path:
    from configs.schema import CorpusSettings, TokenizerSettings
    from data_prep.build import prepare_tokenizer

    corpus = CorpusSettings(input=tuple(map(str, corpora)))
    return prepare_tokenizer(corpus, TokenizerSettings(vocab_size=10_000, sample_bytes=20_000_000), folder, False)


def figures_of(corpus: str, whole: Text, runs: dict[tuple[str, int], list[Pair]], cores: int) -> list[Figures]:
    steady = {way: statistics.median(pair.steady for pair in pairs) for way, pairs in runs.items()}
    figures = []
    for (way, used), pairs in runs.items():
        seconds = statistics.median(pair.seconds_of(whole) for pair in pairs)
        figures.append(
            Figures(
                way,
                corpus,
                used,
                round(whole.megabytes, 1),
                round(whole.megabytes / seconds, 2),
                round(steady[way, used], 2),
                round(seconds - whole.megabytes / steady[way, used], 2),
                round(statistics.median(pair.peak for pair in pairs) / 2**20, 1),
                round(steady["malmoi", cores] / steady[way, used], 2),
            )
        )
    return figures


def show(figures: list[Figures], memory: list[Memory]) -> None:
    print(
        f"{'way':<20}{'corpus':<14}{'cores':>6}{'MB':>7}{'MB/s':>8}{'steady':>8}{'start s':>9}{'peak MiB':>10}"
        f"{'malmoi is':>11}"
    )
    for f in figures:
        print(
            f"{f.way:<20}{f.corpus:<14}{f.cores:>6}{f.megabytes:>7.1f}{f.megabytes_a_second:>8.2f}"
            f"{f.steady_megabytes_a_second:>8.2f}{f.start_seconds:>9.2f}{f.peak_mebibytes:>10.0f}{f.times_slower:>10.1f}x"
        )
    for m in memory:
        print(
            f"malmoi, {m.corpus} repeated to {m.megabytes:.0f} MB: {m.seconds:.1f} s, peak {m.peak_mebibytes:.0f} MiB"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        _, _, name, source, folder_of_tokenizer, target, count = sys.argv
        shutil.rmtree(target)
        Path(target).mkdir()
        WAYS[name][0](Path(source), Path(folder_of_tokenizer), Path(target), int(count))
    else:
        main()
