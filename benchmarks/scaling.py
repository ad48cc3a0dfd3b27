"""Several ranks: two gloo ranks with a core each against one, measured; and 8 to 4,096 GPUs, from a model.

    python benchmarks/scaling.py [--rounds 6 --steps 4] [--only measured|modeled] [--quick]
    python benchmarks/scaling.py --only modeled --between ethernet100 --mfu 0.4 --micro_batches 4

Measured: each rank computes as many samples, alone on a core (the other core idle) or beside a second rank on the other
core, by `Trainer.run` as `malmoi train` has it, and by a plain loop of torch with DDP's defaults. The processes stay
up and take turns of some steps. `efficiency` is the time of one rank over that of two in the same round. Beside it is
what the model says for plain DDP, from the time of one rank and two all-reduces, timed.

Modeled: the formulae of docs/scaling.md. A GPU's computing time is an assumption (`--mfu` of `--peak_tflops`), and so
are the links (`--inside`, `--between`: a preset, or BYTES_A_SECOND,SECONDS). Prints tables and, as the last line, one
JSON object.
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from harness import SHAPES, in_turns, median, new_parser, parse_options, prepare_work, print_figures, ratios, seconds_of
from scaling_model import BACKENDS, LINKS, Cluster, Job, Link, efficiency, fitted_link, gpt2_units
from sides.turns import Rank, Shape, Side

import malmoi
from malmoi.configs.model import ModelSettings

SIDES = {"malmoi": "malmoi_trainer", "torch": "plain"}
REDUCED_BYTES = (400_000, 40_000_000)
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class TwoRanks:
    """Two ranks against one: medians, and the spread over the rounds."""

    way: str
    one_rank_seconds: float
    """A step."""
    two_ranks_seconds: float
    efficiency: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class AllReduce:
    """Of fp32 numbers between two ranks on a core each."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What was measured on two cores."""

    figures: list[TwoRanks]
    predicted: float
    """What the model says for torch's way."""
    all_reduce: list[AllReduce]


@dataclass(frozen=True)
class Modeled:
    """Efficiency by number of GPUs and backend, from one GPU's work."""

    compute_seconds: float
    mfu: float
    rows: list[dict[str, float]]


@dataclass(frozen=True)
class Figures:
    """What was asked for."""

    measured: Measured | None
    modeled: Modeled | None


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def all_reduce_seconds(rank: Rank) -> tuple[float, float]:
    """Time all-reduces of REDUCED_BYTES on this rank."""
    os.environ |= rank.environment()
    os.sched_setaffinity(0, {rank.core})
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")

    def measured(size: int) -> float:
        numbers, taken = torch.ones(size // 4), []
        for _ in range(8):
            distributed.barrier()
            taken.append(seconds_of(lambda: distributed.all_reduce(numbers)))
        return statistics.median(taken)

    first, second = map(measured, REDUCED_BYTES)
    distributed.destroy_process_group()
    return first, second


def measure(options: argparse.Namespace, shape: Shape) -> Measured:
    """Have one rank and two, of both ways, take turns."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("two ranks need two cores; this process may use one (see taskset)")
    port = free_port()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        reduced, _ = pool.map(all_reduce_seconds, [Rank(rank, 2, core, port) for rank, core in enumerate(cores)])
    all_reduce = [AllReduce(size, seconds) for size, seconds in zip(REDUCED_BYTES, reduced, strict=True)]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = prepare_work(Path(name), shape, optimizer=options.optimizer)

        def together(way: str, ranks: int) -> list[Side]:
            port = free_port()
            return [
                stack.enter_context(
                    Side(SIDES[way], work, Path(name) / f"{way}-{ranks}-{rank}.log", Rank(rank, ranks, core, port))
                )
                for rank, core in enumerate(cores[:ranks])
            ]

        def turn(sides: list[Side]) -> float:
            """Return the seconds a step of all together: the slowest rank's."""
            for side in sides:
                side.begin(options.steps)
            return max(side.turn().seconds for side in sides) / options.steps

        ways = {(way, ranks): together(way, ranks) for way in SIDES for ranks in (1, 2)}
        turns = {way: lambda sides=sides: turn(sides) for way, sides in ways.items()}
        seconds = in_turns(turns, options.rounds)
    figures = []
    for way in SIDES:
        one, two = seconds[way, 1], seconds[way, 2]
        figures.append(TwoRanks(way, median(one, 4), median(two, 4), *ratios(one, two, 4)))
    link = fitted_link(REDUCED_BYTES, reduced, 2)
    units = gpt2_units(shape.layers, shape.width, shape.vocab, shape.block)
    step = figures[1].one_rank_seconds
    # Two cores move bytes and compute by turns.
    job = Job(tuple(units), step / 3, step * 2 / 3, overlap=False)
    return Measured(figures, round(efficiency(job, Cluster(2, 2, link, link, share=1.0), "ddp"), 4), all_reduce)


def link_named(text: str) -> Link:
    """Return a preset, or the link `BYTES_A_SECOND,SECONDS`."""
    if text in LINKS:
        return LINKS[text]
    bandwidth, latency = text.split(",")
    return Link(float(bandwidth), float(latency))


def model_gpus(options: argparse.Namespace) -> Modeled:
    """Compute the efficiency of many GPUs, each at the assumed share of its peak."""
    shape = SHAPES[options.modeled_shape]
    vocab = -(-shape.vocab // 64) * 64
    flops = malmoi.MODELS["gpt2"].flops_per_token(ModelSettings(**shape.model), vocab)
    seconds = options.samples * shape.block * flops / (options.mfu * options.peak_tflops * 1e12)
    units = gpt2_units(shape.layers, shape.width, vocab, shape.block)
    job = Job(tuple(units), seconds / 3, seconds * 2 / 3, options.micro_batches, options.bucket_megabytes * 2**20)
    inside, between = link_named(options.inside), link_named(options.between)
    rows = []
    for gpus in GPUS:
        cluster = Cluster(gpus, options.gpus_a_node, inside, between, options.link_share)
        rows.append({"gpus": gpus, **{name: round(efficiency(job, cluster, name), 4) for name in BACKENDS}})
    return Modeled(job.computing, options.mfu, rows)


def main() -> None:
    parser = new_parser(__doc__, "14M", rounds=6, steps=4)
    parser.add_argument("--only", choices=("measured", "modeled"))
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="Malmoi's, measured")
    parser.add_argument("--modeled_shape", choices=SHAPES, default="124M")
    parser.add_argument("--samples", type=int, default=16, help="of a micro-batch on a GPU")
    parser.add_argument("--micro_batches", type=int, default=1, help="of an optimizer step on a GPU")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="of a GPU; an H100's in bf16")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that one GPU reaches: an assumption")
    parser.add_argument("--gpus_a_node", type=int, default=8)
    parser.add_argument("--inside", default="nvlink4", help=f"{', '.join(LINKS)} or BYTES_A_SECOND,SECONDS")
    parser.add_argument("--between", default="infiniband")
    parser.add_argument("--link_share", type=float, default=0.8, help="of the nominal bandwidth that is reached")
    parser.add_argument("--bucket_megabytes", type=float, default=25.0)
    options = parse_options(parser)
    measured = measure(options, options.shape) if options.only != "modeled" else None
    print_figures(Figures(measured, model_gpus(options) if options.only != "measured" else None))


if __name__ == "__main__":
    main()
