"""What the benchmarks share: options, a run to measure, rounds in which ways take turns, and how figures are printed.

Imports no torch, so that a process that only starts others has none.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from sides.turns import Shape, Work, environment_on
from tables import figure_tables

import malmoi

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).parents[1]
DEMO_TEXT = ROOT / "data_prep" / "demo_text"
LONGEST_START = 600
"""Seconds after which a process that has taken no step has failed."""
SHAPES = {
    "tiny": Shape(2, 64, 4_000, 64, 4),
    "5M": Shape(4, 256, 8_000, 128, 8),
    "14M": Shape(6, 384, 10_000, 128, 16),
    "124M": Shape(12, 768, 50_257, 1_024, 8),
}
Way = TypeVar("Way")
Result = TypeVar("Result")
Spread = tuple[float, float, float]
"""Median, smallest and largest."""


def new_parser(
    description: str | None, shape: str | None = None, has_device: bool = False, **counts: int
) -> argparse.ArgumentParser:
    """Return a parser with --quick and --threads, and a script's docstring as its help.

    Args:
        shape: default of `--shape`, which is then an option, and each number of it too.
        has_device: adds `--device` and `--precision`.
        counts: options, such as `rounds`, with their defaults; 2 with --quick.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, and measures nothing")
    parser.add_argument("--threads", type=int, help="of every process; none: one a core")
    if shape is not None:
        parser.add_argument("--shape", choices=SHAPES, default=shape)
        for name in vars(SHAPES[shape]):
            parser.add_argument(f"--{name}", type=int, help="none: the shape's")
    if has_device:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.set_defaults(counts=[*counts])
    return parser


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of `new_parser`'s parser: `shape` as a `Shape`, and `threads` as the number that is set."""
    options = parser.parse_args()
    if options.quick:
        vars(options).update(dict.fromkeys(options.counts, 2))
    if "shape" in options:
        chosen = SHAPES["tiny" if options.quick else options.shape]
        numbers = {name: getattr(options, name) for name in vars(chosen)}
        options.shape = replace(chosen, **{name: number for name, number in numbers.items() if number is not None})
    options.threads = set_threads(options.threads)
    return options


def set_threads(threads: int | None = None) -> int:
    """Set and return the threads of torch, in this process and in those that it starts.

    Args:
        threads: None: as many as OMP_NUM_THREADS says, or one a core that this process may use.
    """
    count = threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:  # which has read the variable
        sys.modules["torch"].set_num_threads(count)
    return count


def train_tokenizer(corpora: Sequence[Path], folder: Path) -> Path:
    """Train a tokenizer of 10,000 tokens on some files, and return its folder."""
    tokenizer = {"vocab_size": 10_000, "sample_bytes": 20_000_000}
    corpus = {"input": [*map(str, corpora)]}
    return malmoi.train_tokenizer(malmoi.load_config(None, run=folder, corpus=corpus, tokenizer=tokenizer))


def prepare_work(
    folder: Path, shape: Shape, device: str = "cpu", precision: str = "fp32", optimizer: str = "adamw"
) -> Work:
    """Build tokenizer and shards of the repository's text, and return what each side is to train on, not compiled."""
    batch = {"global_batch_size": shape.batch, "micro_batch_size": shape.batch}
    settings: dict[str, Any] = {
        "run": str(folder / "run"),
        "corpus": {"input": [str(DEMO_TEXT)]},
        "tokenizer": {"vocab_size": shape.vocab, "sample_bytes": 10_000_000},
        "data": {"cache": str(folder / "cache")},
        "model": shape.model,
        "train": {**batch, "max_steps": 1_000_000, "precision": precision},
        "optim": {"name": optimizer},
        "checkpoint": {"every": 0},
        "eval": {"every": 0, "tokens": 1_000},
        "generate": {"max_new_tokens": 1},
    }
    [shards] = malmoi.prepare(malmoi.load_config(None, settings))
    vocab_size = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))["vocab_size"]
    if vocab_size != shape.vocab:
        sys.exit(f"the tokenizer has {vocab_size} tokens in place of {shape.vocab}")
    # Each side has a run folder of its own; all share one tokenizer.
    settings["tokenizer"] = {"path": str(folder / "run" / "tokenizer")}
    config = folder / "malmoi.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Work(
        **vars(shape),
        tokens=str(min(shards.glob("train*.bin"))),
        config=str(config),
        device=device,
        precision=precision,
        compile=False,
    )


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds that a call takes, and on a GPU what it has queued there."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def seconds_to_text(command: Sequence[str], file: Path, text: str, log: Path, device: str = "cpu") -> float:
    """Start a process, end it as soon as `file` holds `text`, and return the seconds until then."""
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, env=environment_on(device), stdout=stream, stderr=subprocess.STDOUT)
    while not (file.is_file() and text in file.read_text(encoding="utf-8")):
        if process.poll() is not None or time.perf_counter() - began > LONGEST_START:
            process.kill()
            sys.exit(f"{' '.join(command)} took no step:\n{log.read_text(encoding='utf-8')[-3000:]}")
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    return seconds


def in_turns(ways: Mapping[Way, Callable[[], Result]], rounds: int, warm_up: int = 1) -> dict[Way, list[Result]]:
    """Call all `ways` once a round, so that the machine's drift meets all alike; each round begins with another.

    Args:
        warm_up: rounds before those, whose results are dropped.

    Returns:
        The results of each way, by round.
    """
    results: dict[Way, list[Result]] = {way: [] for way in ways}
    for number in range(-warm_up, rounds):
        first = number % len(ways)
        for way in [*ways][first:] + [*ways][:first]:
            result = ways[way]()
            if number >= 0:
                results[way].append(result)
    return results


def median(numbers: Sequence[float], digits: int = 3) -> float:
    """Return the median, rounded."""
    return round(statistics.median(numbers), digits)


def spread(numbers: Sequence[float], digits: int = 3) -> Spread:
    """Return median, smallest and largest, rounded."""
    return median(numbers, digits), round(min(numbers), digits), round(max(numbers), digits)


def ratios(above: Sequence[float], below: Sequence[float], digits: int = 3) -> Spread:
    """Return the spread of the rounds' quotients."""
    return spread([one / other for one, other in zip(above, below, strict=True)], digits)


def print_figures(figures: "DataclassInstance") -> None:
    """Print the figures as tables and, in the last line, as one JSON object."""
    line = json.dumps(asdict(figures))
    print("\n".join(figure_tables(json.loads(line))))
    print(line)
