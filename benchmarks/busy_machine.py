"""Training beside other programs that compute: Malmoi as it starts, and each fixed number of threads as torch has it.

    python benchmarks/busy_machine.py [--steps 20] [--rounds 5] [--quick]

The demo's model and text. Malmoi's threads spin for a shorter time where the machine is busy, see
malmoi/thread_waiting.py; torch's own as long as libgomp has it, which setting that number says. The other programs are
endless loops of one thread each. All ways take turns within a round, in processes of their own, for each number of such
programs. Ratios are Malmoi's speed as a multiple of the fastest of the fixed numbers in the same round. The last line
is one JSON object.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from harness import Spread, in_turns, new_parser, parse_options, prepare_work, print_figures, ratios, spread
from sides.turns import Shape, Side

DEMO = Shape(layers=4, width=128, vocab=4_096, block=128, batch=8)
OTHER_PROGRAMS = (0, 1, 4)
OWN = "malmoi"
SPINS = {"GOMP_SPINCOUNT": "300000"}


@dataclass(frozen=True)
class Speed:
    """Of one way beside so many other programs: tokens a second."""

    other_programs: int
    way: str
    tokens_per_second: Spread


@dataclass(frozen=True)
class Share:
    """Malmoi's speed as a multiple of that of the best fixed number of threads."""

    other_programs: int
    of_the_best: Spread


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    shape: dict[str, int]
    cores: int
    rounds: int
    steps: int
    speeds: list[Speed]
    shares: list[Share]


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Have so many programs compute meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def tokens_per_second(side: Side, steps: int) -> float:
    """Have a side take so many steps, and return its speed."""
    return steps * DEMO.batch * DEMO.block / side.steps(steps).seconds


def main() -> None:
    options = parse_options(new_parser(__doc__, rounds=5, steps=20))
    cores = len(os.sched_getaffinity(0))
    variables = {OWN: {"OMP_NUM_THREADS": str(cores)}}
    for count in range(1, cores + 1):
        variables[f"{count} of torch's threads"] = {"OMP_NUM_THREADS": str(count), **SPINS}
    speeds, shares = [], []
    with tempfile.TemporaryDirectory() as name, ExitStack() as sides:
        folder = Path(name)
        work = prepare_work(folder, DEMO)
        ways = {}
        for number, (way, of_way) in enumerate(variables.items()):
            side = sides.enter_context(Side("malmoi_trainer", work, folder / f"{number}.log", variables=of_way))
            ways[way] = partial(tokens_per_second, side, options.steps)
        for count in OTHER_PROGRAMS:
            with busy_programs(count):
                results = in_turns(ways, options.rounds)
            speeds += [Speed(count, way, spread(seen, 0)) for way, seen in results.items()]
            best = [max(each) for each in zip(*(results[way] for way in ways if way != OWN), strict=True)]
            shares.append(Share(count, ratios(results[OWN], best, 2)))
    print_figures(Figures(asdict(DEMO), cores, options.rounds, options.steps, speeds, shares))


if __name__ == "__main__":
    main()
