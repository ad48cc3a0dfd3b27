"""From the start of a process to its first step done: `malmoi train`, a plain torch script and HF's Trainer.

    python benchmarks/startup.py [--shape 14M] [--rounds 5] [--quick]

The shards are built before. Malmoi is its complete command, which checks settings and shards, searches for a checkpoint
and writes a line of metrics.jsonl after its first step; that line is the end. The others are benchmarks/sides/plain.py,
in nanoGPT's manner, and hf_trainer.py, which answer when their step is done. The sides take turns within a round, and
each round begins with another; the first round, in which files come from the disk, does not count. Nothing is compiled.
Ratios are Malmoi's time as a multiple of the side's in the same round. The last line is one JSON object.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import (
    Spread,
    in_turns,
    median,
    new_parser,
    parse_options,
    prepare_work,
    print_figures,
    ratios,
    seconds_to_text,
)
from sides.turns import Side, Work


@dataclass(frozen=True)
class Start:
    """Of one side: seconds to the first step, and Malmoi's as a multiple of them."""

    side: str
    seconds: float
    malmoi: Spread


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    shape: dict[str, int]
    threads: int
    rounds: int
    starts: list[Start]


def malmoi_seconds(work: Work, folder: Path) -> float:
    """Time `malmoi train`, ended after its first step."""
    run = folder / "started"
    shutil.rmtree(run, ignore_errors=True)
    words = ["train", "--config", work.config, "--run", str(run), "--log.every", "1"]
    command = [sys.executable, "-m", "malmoi.launch", *words]
    return seconds_to_text(command, run / "metrics.jsonl", "\n", folder / "malmoi.log")


def side_seconds(script: str, work: Work, folder: Path) -> float:
    """Time a side that is asked for one step at once."""
    began = time.perf_counter()
    with Side(script, work, folder / f"{script}.log") as side:
        side.steps(1)
        return time.perf_counter() - began


def main() -> None:
    options = parse_options(new_parser(__doc__, "14M", rounds=5))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = prepare_work(folder, options.shape)
        ways: dict[str, Callable[[], float]] = {
            "malmoi": lambda: malmoi_seconds(work, folder),
            "plain": lambda: side_seconds("plain", work, folder),
            "trainer": lambda: side_seconds("hf_trainer", work, folder),
        }
        seconds = in_turns(ways, options.rounds)
    starts = [Start(side, median(taken, 2), ratios(seconds["malmoi"], taken)) for side, taken in seconds.items()]
    print_figures(Figures(asdict(options.shape), options.threads, options.rounds, starts))


if __name__ == "__main__":
    main()
