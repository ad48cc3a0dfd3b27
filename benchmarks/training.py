"""Tokens a second of Malmoi's loop against HF's Trainer and a plain loop in nanoGPT's manner.

    python benchmarks/training.py [--shape 14M|124M] [--device cuda --precision bf16] [--steps 10] [--quick]

Each side is a process that has loaded the same model and takes some steps when it is its turn; within a round all
sides take turns, and each round begins with another, so that the machine's drift meets all. `+compile` is
`torch.compile`: of the blocks for Malmoi, of the model for the others. The first two turns, one of which all take
at once, warm up and are not counted. On a GPU all sides must fit beside each other; `--only` leaves some out.
With bf16 the Trainer is there a second time, as it is by default: in fp32. Prints medians, and the ratios of each
round with their spread: how many times as fast Malmoi is. The last line is one JSON object.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness import Spread, in_turns, median, new_parser, parse_options, prepare_work, print_figures, ratios
from sides.turns import Side, Work

SIDES = {"malmoi": "malmoi_trainer", "trainer": "hf_trainer", "plain": "plain"}


@dataclass(frozen=True)
class Speed:
    """Of one side: tokens a second, and what Malmoi's are of them, with and without its `train.compile`."""

    side: str
    tokens_a_second: float
    peak_mib: float
    """Peak memory of the device in a turn."""
    malmoi: Spread | None
    """None where that side was left out."""
    malmoi_compiled: Spread | None


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    shape: dict[str, int]
    device: str
    precision: str
    threads: int
    rounds: int
    speeds: list[Speed]


def sides_of(work: Work, is_quick: bool) -> dict[str, tuple[str, Work]]:
    """Return script and work of each side by its name in the output."""
    sides = {
        f"{name}{'+compile' if is_compiled else ''}": (script, replace(work, compile=is_compiled))
        for is_compiled in ((False,) if is_quick else (False, True))
        for name, script in SIDES.items()
    }
    if work.precision != "fp32":
        sides["trainer in fp32"] = SIDES["trainer"], replace(work, precision="fp32")
    return sides


def main() -> None:
    parser = new_parser(__doc__, "14M", has_device=True, steps=10, rounds=6)
    parser.add_argument("--only", nargs="+", help="sides, as they are called in the output; none: all")
    options = parse_options(parser)
    shape, steps = options.shape, options.steps
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = prepare_work(Path(name), shape, options.device, options.precision)
        sides: dict[str, Side] = {}
        for label, (script, of_side) in sides_of(work, options.quick).items():
            if label in (options.only or [label]):
                sides[label] = stack.enter_context(Side(script, of_side, Path(name) / f"{label}.log"))
                sides[label].begin(steps)
        for side in sides.values():
            side.turn()
        turns = in_turns({label: lambda side=side: side.steps(steps) for label, side in sides.items()}, options.rounds)
    seconds = {label: [turn.seconds for turn in taken] for label, taken in turns.items()}
    speeds = [
        Speed(
            label,
            round(steps * shape.batch * shape.block / median(taken, 9), 1),
            round(max(turn.peak_mib for turn in turns[label]), 1),
            *(ratios(taken, seconds[ours]) if ours in seconds else None for ours in ("malmoi", "malmoi+compile")),
        )
        for label, taken in seconds.items()
    ]
    print_figures(Figures(asdict(shape), options.device, options.precision, options.threads, options.rounds, speeds))


if __name__ == "__main__":
    main()
