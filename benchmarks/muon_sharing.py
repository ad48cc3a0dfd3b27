"""How well ranks share Muon's work: a step whose arithmetic is replaced by a sleep, against a perfect share of it.

    python benchmarks/muon_sharing.py [--seconds 4] [--rounds 3] [--quick]

Every matrix sleeps for a time in proportion to its operations, `--seconds` for all of a model's. On W gloo ranks of
this machine a perfect share takes seconds / W; all else in a step (exchanging the matrices, AdamW for the rest, ZeRO's
gathering of weights) comes on top. Sleeping needs no core, so more ranks than cores show it too. Prints the medians
and, as the last line, one JSON object.
"""

import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.multiprocessing
from accelerate.state import AcceleratorState
from harness import new_parser, parse_options, print_figures
from torch import Tensor, distributed

import malmoi.train.optim.muon
from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import BackendName, ParallelSettings, TrainSettings
from malmoi.train.backends import BACKENDS, BackendInputs
from malmoi.train.backends.start import start_ranks
from malmoi.train.models import MODELS, SpecialTokenIds
from malmoi.train.models.compute import configure_compute

RANKS = (2, 4)
NAMES: tuple[BackendName, ...] = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
SHAPE = ModelSettings(n_layer=8, n_head=2, n_embd=320, block_size=16)
"""ZeRO 3 keeps matrices of fewer than 100,000 numbers whole, and gathers them in every step."""
VOCABULARY = 128


@dataclass(frozen=True)
class Row:
    """A backend on some ranks."""

    ranks: int
    backend: str
    seconds: float
    """A step's median."""
    times_perfect: float
    """Of a perfect share of the sleep."""


@dataclass(frozen=True)
class Figures:
    """What is slept in all, and each backend's step."""

    slept: float
    rows: list[Row]


def operations(matrix: Tensor) -> int:
    """Return those of a Newton-Schulz iteration, about."""
    short, long = sorted(matrix.shape)
    return 2 * short * short * long + short**3


def sleep_instead(seconds_an_operation: float, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Take as long as the arithmetic of a larger matrix, and return this one."""
    time.sleep(seconds_an_operation * operations(matrix))
    return matrix.to(dtype, copy=True)


def seconds_of_steps(name: BackendName, rank: int, ranks: int, rounds: int) -> list[float]:
    """Train with a backend, and return the seconds of its steps but the first."""
    optim = OptimSettings(name="muon")
    train = TrainSettings(precision="fp32")
    env = start_ranks(train, optim, ParallelSettings(backend=name))
    torch.manual_seed(1)
    spec = MODELS["gpt2"]
    model = spec.build(spec.config(SHAPE, VOCABULARY, SpecialTokenIds(0, 1, 2, 3)))
    configure_compute(model, spec.blocks(model), train, "fp32", document_mask=False)
    backend = BACKENDS[name].build(BackendInputs(env, model, spec, optim, 1, 1))
    ids = torch.randint(0, VOCABULARY, (1, SHAPE.block_size))
    seconds = []
    for _ in range(1 + rounds):
        with backend.micro_batch(is_last=True):
            backend.backward(backend.model(ids, ids, VOCABULARY), ranks * ids.numel())
        distributed.barrier()
        began = time.perf_counter()
        backend.step(1e-3)
        distributed.barrier()
        seconds.append(time.perf_counter() - began)
    backend.close()
    return seconds[1:]


def total_operations() -> int:
    """Return those of all matrices of the model's blocks."""
    width = SHAPE.n_embd
    sides = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    return SHAPE.n_layer * sum(operations(torch.empty(each, device="meta")) for each in sides)


def measure_on_a_rank(rank: int, ranks: int, seconds: float, rounds: int, out: Path) -> None:
    """Time every backend, and have rank 0 write the medians to `out`."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "DS_ACCELERATOR": "cpu",
    }
    distributed.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=ranks)
    before = dict(os.environ)
    malmoi.train.optim.muon.orthogonalized = partial(sleep_instead, seconds / total_operations())
    medians = {}
    for name in NAMES:
        medians[name] = median(seconds_of_steps(name, rank, ranks, rounds))
        gc.collect()
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)
    if rank == 0:
        out.write_text(json.dumps(medians), encoding="utf-8")
    distributed.barrier()


def main() -> int:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parse_options(parser)
    slept = 0.5 if options.quick else options.seconds
    rows = []
    for ranks in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "medians.json")
            torch.multiprocessing.spawn(measure_on_a_rank, (ranks, slept, options.rounds, out), nprocs=ranks)
            medians = json.loads(out.read_text(encoding="utf-8"))
        for name in NAMES:
            rows.append(Row(ranks, name, round(medians[name], 3), round(medians[name] / (slept / ranks), 3)))
    print_figures(Figures(slept, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
