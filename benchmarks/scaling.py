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
import socket
import statistics
import subprocess
import sys
import tempfile
import time
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
from configs.schema import (
    CorpusSettings,
    DataSettings,
    ModelSettings,
    RunSettings,
    TokenizerSettings,
    TrainSettings,
)

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
REDUCED_BYTES = (400_000, 40_000_000)
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


def run_settings(options: argparse.Namespace, ranks: int) -> RunSettings:
    """Weak scaling: `--batch` samples a rank."""
    return RunSettings(
        run=str(Path(options.folder) / f"run-{ranks}"),
        corpus=CorpusSettings(input=(str(Path(options.folder) / "reviews.jsonl"),)),
        tokenizer=TokenizerSettings(vocab_size=options.measured_vocab_size),
        data=DataSettings(cache=str(Path(options.folder) / "cache")),
        model=ModelSettings(
            options.measured_layers,
            max(1, options.measured_width // 64),
            options.measured_width,
            options.measured_block,
        ),
        train=TrainSettings(
            global_batch=ranks * options.batch,
            micro_batch=options.batch,
            steps=10**6,
            precision="fp32",
            optimizer=options.optimizer,
            save_every=0,
            evaluate_every=0,
        ),
    )


class Turns:
    """The worker's end of the pipe: a line in allows a turn, a line out says how long it took."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._began = 0.0

    def begin(self) -> None:
        """Wait for the word."""
        if not sys.stdin.readline():
            os._exit(0)  # the parent is done: no rank waits for another's last step
        self._began = time.perf_counter()

    def step(self) -> None:
        """A step is done."""
        self._done += 1
        if self._done % self._steps == 0:
            print(json.dumps({"seconds": (time.perf_counter() - self._began) / self._steps}), flush=True)
            self.begin()


def malmoi_worker(options: argparse.Namespace, ranks: int) -> None:
    """`Training.run`, whose display marks the steps."""
    from train.display import TrainingDisplay
    from train.loop import Training
    from train.run_folder import prepare_run
    from train.session import ready
    from train.signals import StopRequest

    settings = run_settings(options, ranks)
    made = ready(settings, prepare_run(settings))
    turns = Turns(options.steps)

    class Marked(TrainingDisplay):
        def start(self, first_step: int, steps: int) -> None:
            turns.begin()

        def step(self, done: int) -> None:
            turns.step()

    with Marked(False) as display:
        Training(made.plan, made.backend, made.placement, display).run(StopRequest())


def torch_worker(options: argparse.Namespace, ranks: int) -> None:
    """The least that trains the same shape with DDP."""
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    settings = run_settings(options, ranks)
    shape, vocab_size = settings.model, options.measured_vocab_size
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=shape.block_size,
            n_embd=shape.n_embd,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    wrapped: torch.nn.Module = model
    if ranks > 1:
        distributed.init_process_group("gloo")
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, vocab_size, (options.batch, shape.block_size))
    turns = Turns(options.steps)
    if ranks > 1:
        for size in REDUCED_BYTES:
            numbers, taken = torch.ones(size // 4), []
            for _ in range(8):
                distributed.barrier()
                began = time.perf_counter()
                distributed.all_reduce(numbers)
                taken.append(time.perf_counter() - began)
            print(json.dumps({"bytes": size, "seconds": statistics.median(taken)}), flush=True)
    turns.begin()
    while True:
        logits = wrapped(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.step()


class Worker:
    """A rank in a process of its own, on a core of its own."""

    def __init__(self, way: str, rank: int, ranks: int, port: int, core: int, words: list[str]) -> None:
        ranks_env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
        launch = ranks_env | place if ranks > 1 else place
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", way, "--core", str(core), "--ranks", str(ranks), *words],
            env={**os.environ, **{name: str(value) for name, value in launch.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        """Allow a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def said(self) -> dict[str, float]:
        """The next line of figures."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                record: dict[str, float] = json.loads(line)
                return record
        raise SystemExit(f"a worker ended with exit code {self._process.wait()}")

    def end(self) -> None:
        """Close its pipe, at which it leaves, and wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def turn(workers: list[Worker]) -> float:
    """Seconds a step of all together: the slowest rank's."""
    for worker in workers:
        worker.go()
    return max(worker.said()["seconds"] for worker in workers)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One rank and two, of both ways, in turns."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as reviews:
        (Path(options.folder) / "reviews.jsonl").write_text("".join(islice(reviews, DOCUMENTS)), encoding="utf-8")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two ranks need two cores; this process may use one (see taskset)")
    words = sys.argv[1:] + (["--folder", options.folder] if "--folder" not in sys.argv else [])
    ways: dict[str, tuple[list[Worker], list[Worker]]] = {}
    reduced: list[dict[str, float]] = []
    try:
        for way in ("malmoi", "torch"):
            alone = [Worker(way, 0, 1, 0, cores[0], words)]
            turn(alone)  # the first turn warms up, and prepares the shards for both
            port = free_port()
            pair = [Worker(way, rank, 2, port, cores[rank], words) for rank in range(2)]
            ways[way] = alone, pair
            if way == "torch":
                reduced = [{} for _ in REDUCED_BYTES]
                for worker in pair:
                    reduced = [worker.said() for _ in REDUCED_BYTES]
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
            for worker in (*alone, *pair):
                worker.end()
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


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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
    for name, kind in (("worker", str), ("core", int), ("ranks", int), ("folder", str)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.quick:
        options.rounds, options.steps, options.batch = 2, 2, 4
        options.measured_layers, options.measured_width, options.measured_vocab_size = 2, 128, 4000
    return options


def main() -> None:
    options = options_of()
    if options.worker:
        os.sched_setaffinity(0, {options.core})
        (malmoi_worker if options.worker == "malmoi" else torch_worker)(options, options.ranks)
        return
    result: dict[str, Any] = {}
    if options.only != "modelled":
        with tempfile.TemporaryDirectory() as folder:
            options.folder = folder
            seen = measured(options)
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
