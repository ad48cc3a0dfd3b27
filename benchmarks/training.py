"""Tokens a second of Malmoi's loop against HF's Trainer and a plain loop in nanoGPT's manner.

    python benchmarks/training.py [--shape 14M|124M] [--device cuda --precision bf16] [--steps 10] [--quick]

Each side is a process that has loaded the same model and takes some steps when it is its turn; within a round all
sides take turns, and each round begins with another, so that the machine's drift meets all. `+compile` is
`torch.compile`: of the blocks for Malmoi, of the model for the others. The first two turns, one of which all take
at once, warm up and are not counted. On a GPU all sides must fit beside each other; `--only` leaves some out.
With bf16 the Trainer stands there a second time, as it is by default: in fp32. Prints medians, and the ratios of each
round with their spread. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sides.data import add_shape_options, asked_shape, prepared, set_threads
from sides.turns import Side, Turn
from sides.work import Work

SIDES = {"malmoi": "malmoi.py", "trainer": "hf_trainer.py", "plain": "plain.py"}


@dataclass(frozen=True)
class Speed:
    """Of one side: tokens a second, and what Malmoi's are of them, with and without its `train.compile`."""

    side: str
    tokens_a_second: float
    peak_mib: float
    """Most memory of the device in use in a turn."""
    malmoi: tuple[float, float, float] | None
    """Median, smallest and largest ratio over the rounds; none where that side was left out."""
    malmoi_compiled: tuple[float, float, float] | None


@dataclass(frozen=True)
class Figures:
    """What a run of this script saw."""

    shape: dict[str, int]
    device: str
    precision: str
    threads: int
    rounds: int
    speeds: list[Speed]


def ratios(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Of seconds: how many times as fast we are."""
    seen = [its / mine for mine, its in zip(ours, theirs, strict=True)]
    return round(statistics.median(seen), 3), round(min(seen), 3), round(max(seen), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser, "14M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, help="of every side; none: one a core")
    parser.add_argument("--steps", type=int, default=10, help="a turn")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", help="sides, as they are called in the output; none: all")
    options = parser.parse_args()
    steps, rounds = (2, 2) if options.quick else (options.steps, options.rounds)
    shape, threads = asked_shape(options), set_threads(options.threads)
    compiled = (False,) if options.quick else (False, True)
    turns: dict[str, list[Turn]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = prepared(Path(name), shape, options.device, options.precision)
        sides: dict[str, Side] = {}
        wanted: dict[str, tuple[str, Work]] = {}
        for is_compiled in compiled:
            for kind, script in SIDES.items():
                wanted[f"{kind}{'+compile' if is_compiled else ''}"] = script, replace(work, compile=is_compiled)
        if work.precision != "fp32":
            wanted["trainer in fp32"] = SIDES["trainer"], replace(work, precision="fp32")
        for label, (script, of_side) in wanted.items():
            if label in (options.only or [label]):
                sides[label] = stack.enter_context(Side(script, of_side, Path(name) / f"{label}.log"))
                sides[label].begin(steps)
                turns[label] = []
        for side in sides.values():
            side.turn()
        for side in sides.values():
            side.steps(steps)
        for number in range(rounds):
            labels = [*sides][number % len(sides) :] + [*sides][: number % len(sides)]
            for label in labels:
                turns[label].append(sides[label].steps(steps))
    seconds = {label: [turn.seconds for turn in taken] for label, taken in turns.items()}
    tokens = steps * shape.batch * shape.block
    figures = Figures(
        asdict(shape),
        options.device,
        options.precision,
        threads,
        rounds,
        [
            Speed(
                label,
                round(tokens / statistics.median(taken), 1),
                round(max(turn.peak_mib for turn in turns[label]), 1),
                *(ratios(seconds[ours], taken) if ours in seconds else None for ours in ("malmoi", "malmoi+compile")),
            )
            for label, taken in seconds.items()
        ],
    )
    for speed in figures.speeds:
        line = f"{speed.side:16} {speed.tokens_a_second:10,.0f} tokens/s {speed.peak_mib:8,.0f} MiB"
        for ours, seen in (("malmoi", speed.malmoi), ("malmoi+compile", speed.malmoi_compiled)):
            if seen is not None:
                line += f"   {ours} is {seen[0]:.2f} times ({seen[1]:.2f} to {seen[2]:.2f})"
        print(line)
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
