"""Several ranks: two gloo ranks with a core each against one, measured; and 8 to 4,096 GPUs, from a model.

    python benchmarks/scaling.py [--rounds 6 --steps 4] [--only measured|modelled] [--quick]
    python benchmarks/scaling.py --only modelled --between ethernet100 --mfu 0.4 --micro_batches 4

Measured: each rank computes the same batch, alone on a core (the other core idle) or beside a second rank on the other
core, by `Training.run` as `malmoi train` has it, and by a plain loop of torch with DDP's defaults. The processes stay
up and take turns of some steps. `efficiency` is the time of one rank over that of two in the same round. Beside it
stands what the model says for plain DDP, from the time of one rank and two all-reduces, timed.

Modelled: the formulae of docs/scaling.md. A GPU's computing time is an assumption (`--mfu` of `--peak_tflops`), and so
are the links (`--inside`, `--between`: a preset, or BYTES_A_SECOND,SECONDS). Prints tables and, as the last line, one
JSON object.
"""

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scaling_model import (
    BACKENDS,
    LINKS,
    Cluster,
    Job,
    Link,
    Unit,
    efficiency,
    fitted_link,
    gpt2_units,
)
from benchmarks.sides.ranks import CORPUS as RANKS_CORPUS
from benchmarks.sides.ranks import REDUCED_BYTES, Place, Rank, RankWork, Way, free_port
from configs.schema import ModelSettings

WAYS: tuple[Way, ...] = ("malmoi", "torch")
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CORPUS, DOCUMENTS = ROOT / "data_prep" / "demo_text" / "film_reviews.jsonl.gz", 600


@dataclass(frozen=True)
class Measured:
    """Two ranks against one: medians, and the spread over the rounds."""

    way: str
    one_rank_seconds: float
    two_ranks_seconds: float
    efficiency: float
    lowest: float
    highest: float


def turn(ranks: list[Rank]) -> float:
    """Seconds a step of all together: the slowest rank's."""
    for rank in ranks:
        rank.go()
    return max(rank.said()["seconds"] for rank in ranks)


def measured(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One rank and two, of both ways, in turns."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as reviews:
        (Path(folder) / RANKS_CORPUS).write_text("".join(islice(reviews, DOCUMENTS)), encoding="utf-8")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two ranks need two cores; this process may use one (see taskset)")
    work = RankWork(
        folder,
        options.measured_layers,
        options.measured_width,
        options.measured_block,
        options.measured_vocab_size,
        options.batch,
        options.steps,
        options.optimizer,
    )
    ways: dict[str, tuple[list[Rank], list[Rank]]] = {}
    reduced: list[dict[str, float]] = []
    try:
        for way in WAYS:
            alone = [Rank(work, Place(way, 0, 1, cores[0]), 0)]
            turn(alone)  # the first turn warms up, and prepares the shards for both
            port = free_port()
            pair = [Rank(work, Place(way, rank, 2, cores[rank]), port) for rank in range(2)]
            ways[way] = alone, pair
            if way == "torch":
                reduced = [{} for _ in REDUCED_BYTES]
                for rank in pair:
                    reduced = [rank.said() for _ in REDUCED_BYTES]
            turn(pair)
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(options.rounds):
            for way, (alone, pair) in ways.items() if number % 2 else reversed(ways.items()):
                if number % 2:
                    one = turn(alone)
                    two = turn(pair)
                else:
                    two = turn(pair)
                    one = turn(alone)
                seconds[way].append((one, two))
    finally:
        for alone, pair in ways.values():
            for rank in (*alone, *pair):
                rank.end()
    figures = []
    for way, taken in seconds.items():
        ratios = [one / two for one, two in taken]
        figures.append(
            Measured(
                way,
                round(statistics.median(one for one, _ in taken), 4),
                round(statistics.median(two for _, two in taken), 4),
                round(statistics.median(ratios), 4),
                round(min(ratios), 4),
                round(max(ratios), 4),
            )
        )
    return {"figures": figures, "predicted": predicted(options, figures, reduced), "all_reduce": reduced}


def predicted(options: argparse.Namespace, figures: list[Measured], reduced: list[dict[str, float]]) -> float:
    """The model's efficiency of plain DDP on two cores, which move bytes and compute by turns."""
    [first, second] = reduced
    link = fitted_link((first["bytes"], second["bytes"]), (first["seconds"], second["seconds"]), 2)
    step = next(figure.one_rank_seconds for figure in figures if figure.way == "torch")
    units = gpt2_units(
        options.measured_layers, options.measured_width, options.measured_vocab_size, options.measured_block
    )
    job = Job(tuple(units), step / 3, step * 2 / 3, overlap=False)
    return round(efficiency(job, Cluster(2, 2, link, link, share=1.0), "ddp"), 4)


def link_named(text: str) -> Link:
    """A preset, or `BYTES_A_SECOND,SECONDS`."""
    if text in LINKS:
        return LINKS[text]
    bandwidth, latency = text.split(",")
    return Link(float(bandwidth), float(latency))


def modelled_job(options: argparse.Namespace) -> Job:
    """One GPU's work, at the assumed share of its peak."""
    from train.throughput import flops_per_token

    shape = ModelSettings(options.layers, max(1, options.width // 64), options.width, options.block)
    tokens = options.samples * options.block
    seconds = tokens * flops_per_token(shape, options.vocab_size) / (options.mfu * options.peak_tflops * 1e12)
    units: list[Unit] = gpt2_units(options.layers, options.width, options.vocab_size, options.block)
    return Job(tuple(units), seconds / 3, seconds * 2 / 3, options.micro_batches, options.bucket_megabytes * 2**20)


def modelled(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Efficiency by number of GPUs and backend."""
    job = modelled_job(options)
    rows = []
    for gpus in GPUS:
        cluster = Cluster(
            gpus, options.gpus_a_node, link_named(options.inside), link_named(options.between), options.link_share
        )
        rows.append({"gpus": gpus, **{name: round(efficiency(job, cluster, name), 4) for name in BACKENDS}})
    return rows


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("measured", "modelled"))
    parser.add_argument("--quick", action="store_true", help="two rounds of a small model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--batch", type=int, default=16, help="samples a rank and step, measured")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="Malmoi's, measured")
    parser.add_argument("--measured_layers", type=int, default=6)
    parser.add_argument("--measured_width", type=int, default=384)
    parser.add_argument("--measured_block", type=int, default=128)
    parser.add_argument("--measured_vocab_size", type=int, default=10000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--vocab_size", type=int, default=50304)
    parser.add_argument("--samples", type=int, default=16, help="of a micro-batch on a GPU")
    parser.add_argument("--micro_batches", type=int, default=1, help="of an update on a GPU")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="of a GPU; an H100's in bf16")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that one GPU reaches: an assumption")
    parser.add_argument("--gpus_a_node", type=int, default=8)
    parser.add_argument("--inside", default="nvlink4", help=f"{', '.join(LINKS)} or BYTES_A_SECOND,SECONDS")
    parser.add_argument("--between", default="infiniband")
    parser.add_argument("--link_share", type=float, default=0.8, help="of the nominal bandwidth that is reached")
    parser.add_argument("--bucket_megabytes", type=float, default=25.0)
    options = parser.parse_args(words)
    if options.quick:
        options.rounds, options.steps, options.batch = 2, 2, 4
        options.measured_layers, options.measured_width, options.measured_vocab_size = 2, 128, 4000
    return options


def main() -> None:
    options = options_of()
    result: dict[str, Any] = {}
    if options.only != "modelled":
        with tempfile.TemporaryDirectory() as folder:
            seen = measured(options, folder)
        for figure in seen["figures"]:
            spread = f"{figure.lowest:.1%} to {figure.highest:.1%} in {options.rounds} rounds"
            print(
                f"{figure.way:7s} one rank {figure.one_rank_seconds:.3f} s a step, two {figure.two_ranks_seconds:.3f}: "
                f"{figure.efficiency:.1%} of ideal ({spread})"
            )
        print(f"the model says {seen['predicted']:.1%} for torch")
        result["measured"] = {**seen, "figures": [asdict(figure) for figure in seen["figures"]]}
    if options.only != "measured":
        rows = modelled(options)
        print(
            f"modelled: {options.mfu:.0%} of {options.peak_tflops:g} TFLOP/s assumed, {options.between} between nodes"
        )
        print("| GPUs | " + " | ".join(BACKENDS) + " |\n| ---: |" + " ---: |" * len(BACKENDS))
        for row in rows:
            print(f"| {row['gpus']:,} | " + " | ".join(f"{row[name]:.1%}" for name in BACKENDS) + " |")
        result["modelled"] = {
            "job": {"compute_seconds": modelled_job(options).computing, "mfu": options.mfu},
            "rows": rows,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
