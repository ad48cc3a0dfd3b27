"""How fast raw text becomes shards on disk: `malmoi.prepare` against what the field uses.

    python benchmarks/prepare.py [--corpus F.jsonl.gz...] [--tokenizer DIR] [--megabytes 50] [--rounds 1] [--repeat 200]

Every way reads the same JSON lines, normalizes, encodes with the same tokenizer and writes tokens to disk, on all
cores that this process may use, each in a process of its own that is timed from its start to its end. `MB/s` is
text over that time. A way's `steady` speed is what more text costs: the text that a larger input has more, over the
time that it takes longer, so that starting Python and loading libraries does not count, which takes every way one to
five seconds; `start` is the time left for it. The larger input is the complete text, the smaller a fifth of it; for
Malmoi, whose start is most of its time there, the text eight times over and the text. `times slower` compares steady
speeds. The ways take turns within a round; a figure is the median of the rounds. Malmoi runs on a single core too,
for its scaling, and, with --repeat, on the text repeated up to so many MB, for its memory. Memory is the peak of all
the processes' proportional set sizes together. Ways that need a package which is not installed are left out, and
listed. --fill makes a short text long enough to be timed; that helps every way that remembers words. Prints tables
and, as the last line, one JSON object.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
from harness import DEMO_TEXT, in_turns, new_parser, parse_options, print_figures, train_tokenizer
from sides import prepare_ways
from sides.prepare_ways import WAYS


@dataclass(frozen=True)
class Speed:
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
class Memory:
    """Malmoi on a text many times over."""

    corpus: str
    megabytes: float
    seconds: float
    peak_mebibytes: float


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    figures: list[Speed]
    memory: list[Memory]
    left_out: list[str]


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


def memory_of(process: psutil.Process) -> int:
    """Return the bytes that a process and its children hold, shared pages shared out."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def timed(way: str, file: Path, tokenizer: Path, cores: int) -> tuple[float, int]:
    """Return the seconds from start to end of a process that goes this way, and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, prepare_ways.__file__, way, str(file), str(tokenizer), out, str(cores)]
        # A single core is one for all the processes of a way, the one that reads and writes too.
        affinity = sorted(os.sched_getaffinity(0))[:cores]
        began = time.perf_counter()
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
            sys.exit(f"{way} failed with {started.returncode}:\n{log.decode()[-2000:]}")
        return time.perf_counter() - began, peak


def timed_pair(way: str, texts: tuple[Text, Text], tokenizer: Path, cores: int) -> Pair:
    """Run a way on both texts."""
    (smaller, peak), (larger, peak_of_larger) = (timed(way, text.file, tokenizer, cores) for text in texts)
    return Pair(texts, (smaller, larger), max(peak, peak_of_larger))


def sample(corpus: Path, folder: Path, megabytes: float, repeat_to: float) -> Text:
    """Return JSON lines of the first so many MB of a corpus's text, repeated up to `repeat_to` MB."""
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


def speeds(corpus: str, text: Text, pairs: dict[tuple[str, int], list[Pair]], cores: int) -> Iterator[Speed]:
    """Yield the medians of each way's rounds."""
    steady = {way: statistics.median(pair.steady for pair in taken) for way, taken in pairs.items()}
    for (way, used), taken in pairs.items():
        seconds = statistics.median(pair.seconds[pair.texts.index(text)] for pair in taken)
        yield Speed(
            way,
            corpus,
            used,
            round(text.megabytes, 1),
            round(text.megabytes / seconds, 2),
            round(steady[way, used], 2),
            round(seconds - text.megabytes / steady[way, used], 2),
            round(statistics.median(pair.peak for pair in taken) / 2**20, 1),
            round(steady["malmoi", cores] / steady[way, used], 2),
        )


def main() -> None:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--corpus", nargs="+", type=Path, default=sorted(DEMO_TEXT.glob("*.jsonl.gz")))
    parser.add_argument("--tokenizer", type=Path, help="folder; none: one of 10,000 tokens is trained on the corpora")
    parser.add_argument("--megabytes", type=float, default=50, help="most text of each corpus")
    parser.add_argument("--fill", type=float, default=0, help="MB to which a shorter text is repeated, for every way")
    parser.add_argument("--repeat", type=float, default=0, help="MB to which the text is repeated, for memory")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parse_options(parser)
    if options.quick:
        options.megabytes, options.rounds = 1, 1
    cores = len(os.sched_getaffinity(0))
    missing = [way for way in options.ways if find_spec(WAYS[way][1]) is None]
    ways = [(way, cores) for way in options.ways if way not in missing] + [("malmoi", 1)]
    figures: list[Speed] = []
    memory: list[Memory] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        tokenizer = options.tokenizer or train_tokenizer(options.corpus, folder)
        for corpus in options.corpus:
            name = corpus.name.split(".")[0]
            text = sample(corpus, folder, options.megabytes, options.fill)
            part = options.megabytes if options.fill else text.megabytes / 5
            small = sample(corpus, folder, part, text.megabytes / 5)
            large = sample(corpus, folder, options.megabytes, 8 * text.megabytes)
            timed("malmoi", small.file, tokenizer, cores)  # machine code is compiled once an installation
            pairs = in_turns({way: turn_of(way, (small, text, large), tokenizer) for way in ways}, options.rounds, 0)
            figures += speeds(name, text, pairs, cores)
            for each in (small, large):
                each.file.unlink()
            if options.repeat:
                big = sample(corpus, folder, options.megabytes, options.repeat)
                seconds, peak = timed("malmoi", big.file, tokenizer, cores)
                memory.append(Memory(name, round(big.megabytes, 1), round(seconds, 1), round(peak / 2**20, 1)))
                big.file.unlink()
    print_figures(Figures(figures, memory, missing))


def turn_of(way: tuple[str, int], texts: Sequence[Text], tokenizer: Path) -> Callable[[], Pair]:
    """Return what runs a way, with a number of cores, on two of three texts."""
    name, cores = way
    small, text, large = texts
    pair = (text, large) if name == "malmoi" else (small, text)
    return lambda: timed_pair(name, pair, tokenizer, cores)


if __name__ == "__main__":
    main()
