"""From the start of a process to its first step done: `malmoi train`, a plain torch script and HF's Trainer.

    python benchmarks/startup.py [--shape 14M] [--rounds 5] [--quick]

The shards are built before. Malmoi is its whole command, which checks settings and shards, looks for a checkpoint and
writes a line of metrics.jsonl after its first step; that line is the end. The others are benchmarks/sides/plain.py, in
nanoGPT's manner, and hf_trainer.py, which answer when their step is done. The sides take turns within a round, and
every other round in the other order; the first round, in which files come from the disk, does not count. Nothing is
compiled. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sides.data import add_shape_options, asked_shape, prepared, set_threads
from sides.turns import Side
from sides.work import Work

LONGEST = 600
"""Seconds after which a start has failed."""


@dataclass(frozen=True)
class Start:
    """Of one side: seconds to the first step, and Malmoi's as a multiple of them in the same round."""

    side: str
    seconds: float
    malmoi: tuple[float, float, float]
    """Median, smallest and largest over the rounds."""


@dataclass(frozen=True)
class Figures:
    """What a run of this script saw."""

    shape: dict[str, int]
    threads: int
    rounds: int
    starts: list[Start]


def malmoi_seconds(work: Work, folder: Path) -> float:
    """`malmoi train`, ended after its first step."""
    run = folder / "started"
    shutil.rmtree(run, ignore_errors=True)
    words = ["--config", work.config, "--run", str(run), "--train.log_every", "1"]
    command = [sys.executable, "-m", "launch", "train", *words]
    metrics = run / "metrics.jsonl"
    log = folder / "malmoi.log"
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stderr=stream)
    while not (metrics.is_file() and metrics.read_text().endswith("\n")):
        if process.poll() is not None or time.perf_counter() - began > LONGEST:
            process.kill()
            sys.exit(f"malmoi train took no step:\n{log.read_text()[-3000:]}")
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    return seconds


def side_seconds(script: str) -> Callable[[Work, Path], float]:
    """A side that is asked for one step at once."""

    def seconds(work: Work, folder: Path) -> float:
        began = time.perf_counter()
        with Side(script, work, folder / f"{script}.log") as side:
            side.steps(1)
            return time.perf_counter() - began

    return seconds


SIDES = {"malmoi": malmoi_seconds, "plain": side_seconds("plain.py"), "trainer": side_seconds("hf_trainer.py")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser, "14M")
    parser.add_argument("--threads", type=int, help="of every side; none: one a core")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    shape, threads = asked_shape(options), set_threads(options.threads)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = prepared(folder, shape, "cpu", "fp32")
        for number in range(rounds + 1):
            for side in [*SIDES] if number % 2 else [*reversed(SIDES)]:
                taken = SIDES[side](work, folder)
                if number:
                    seconds[side].append(taken)
    starts = []
    for side, taken in seconds.items():
        seen = [ours / its for ours, its in zip(seconds["malmoi"], taken, strict=True)]
        ratios = (round(statistics.median(seen), 3), round(min(seen), 3), round(max(seen), 3))
        starts.append(Start(side, round(statistics.median(taken), 2), ratios))
        spread = " to ".join(f"{ratio:.2f}" for ratio in ratios[1:])
        print(f"{side:8} {starts[-1].seconds:7.2f} s   malmoi takes {ratios[0]:.2f} times as long ({spread})")
    print(json.dumps(asdict(Figures(asdict(shape), threads, rounds, starts))))


if __name__ == "__main__":
    main()
