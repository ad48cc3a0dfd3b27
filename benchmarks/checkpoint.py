"""How long the loop stands still for a checkpoint: written while it waits, and written while it goes on.

    python benchmarks/checkpoint.py [--layers 12 --width 768 --vocab 50257] [--rounds 3]

A GPT-2 with AdamW's moments (124M by default: 1.5 GB) is saved in turn by Malmoi, synchronously and asynchronously,
and, as peers, by Accelerate's `save_state` and `torch.save`. A stall is the time until the loop may change the
weights again; figures are medians of the rounds. Nothing is trained meanwhile, so what an asynchronous writer costs the
steps beside it is not among them. Prints a table and, as the last line, one JSON object with the bytes of each and
whether the tied embedding is stored once.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from accelerate import Accelerator
from safetensors import safe_open
from transformers import GPT2Config, GPT2LMHeadModel

from train.checkpoint import MODEL_FILE, Progress
from train.parameter_tensors import parameter_tensors
from train.saving import CheckpointWriter, SavePolicy


@dataclass(frozen=True)
class Figures:
    """One way of saving: medians of the rounds."""

    way: str
    stall_seconds: float
    seconds_until_on_disk: float
    share_of_synchronous: float
    """Its stall over that of Malmoi's synchronous save."""
    megabytes: float


def model_with_moments(layers: int, width: int, vocab: int) -> tuple[GPT2LMHeadModel, torch.optim.Optimizer]:
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=max(1, width // 64), vocab_size=vocab, n_positions=64)
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def timed_malmoi(writer: CheckpointWriter, step: int, model: Any, optimizer: Any) -> tuple[float, float]:
    began = time.perf_counter()
    writer.save(Progress(step, step, 0, 0, "f" * 32, None, None), parameter_tensors(model, optimizer))
    stall = time.perf_counter() - began
    writer.wait()
    assert not writer.problems, writer.problems
    return stall, time.perf_counter() - began


def timed(save: Callable[[], object]) -> tuple[float, float]:
    began = time.perf_counter()
    save()
    stall = time.perf_counter() - began
    os.sync()
    return stall, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; none: the system's folder for temporary files")
    options = parser.parse_args()
    model, optimizer = model_with_moments(options.layers, options.width, options.vocab)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model, optimizer)
    taken: dict[str, list[tuple[float, float]]] = {}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        folder = Path(work)
        writers = {
            name: CheckpointWriter(SavePolicy(folder / name, 1, 0, asynchronous=name == "malmoi asynchronous"))
            for name in ("malmoi synchronous", "malmoi asynchronous")
        }
        for step in range(1, options.rounds + 2):  # the first round warms up: it allocates the copies
            for name, writer in writers.items():
                taken.setdefault(name, []).append(timed_malmoi(writer, step, model, optimizer))
                sizes[name] = size_of(folder / name)
            taken.setdefault("accelerate save_state", []).append(
                timed(lambda: accelerator.save_state(str(folder / "accelerate")))
            )
            state = {"model": prepared[0].state_dict(), "optimizer": prepared[1].state_dict()}
            taken.setdefault("torch.save", []).append(timed(lambda state=state: torch.save(state, folder / "torch.pt")))
            sizes["accelerate save_state"] = size_of(folder / "accelerate")
            sizes["torch.save"] = (folder / "torch.pt").stat().st_size
        newest = next((folder / "malmoi asynchronous").glob("step-*"))
        with safe_open(newest / MODEL_FILE, framework="pt") as file:
            names = file.keys()  # safe_open's file is no mapping: it cannot be iterated over
            embeddings = [name for name in names if name in ("transformer.wte.weight", "lm_head.weight")]
    medians = {
        name: tuple(statistics.median(values) for values in zip(*rounds[1:], strict=True))
        for name, rounds in taken.items()
    }
    base = medians["malmoi synchronous"][0]
    figures = [
        Figures(name, round(stall, 3), round(whole, 3), round(stall / base, 3), round(sizes[name] / 1e6, 1))
        for name, (stall, whole) in medians.items()
    ]
    print(f"{'way':<24}{'stall s':>9}{'on disk s':>11}{'of synchronous':>16}{'MB':>9}")
    for f in figures:
        print(
            f"{f.way:<24}{f.stall_seconds:>9.3f}{f.seconds_until_on_disk:>11.3f}{f.share_of_synchronous:>15.1%}"
            f"{f.megabytes:>10.1f}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"parameters": parameters, "figures": [asdict(f) for f in figures], "embeddings": embeddings}))


if __name__ == "__main__":
    main()
