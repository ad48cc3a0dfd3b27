"""How long training waits for a checkpoint: written while it waits, and written while it continues.

    python benchmarks/checkpoint.py [--shape 124M] [--rounds 3] [--quick]

A GPT-2 with AdamW's moments (124M by default: 1.5 GB) is saved in turn by Malmoi, synchronously and asynchronously,
and, as peers, by Accelerate's `save_state` and `torch.save`. A stall is the time until training may change the
weights again; figures are medians of the rounds. Nothing is trained meanwhile, so what an asynchronous writer costs the
steps beside it is not among them. Prints a table and, as the last line, one JSON object with the bytes of each and
the names under which the tied embedding is stored.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from harness import in_turns, median, new_parser, parse_options, print_figures
from safetensors import safe_open
from sides.turns import Shape
from transformers import GPT2Config, GPT2LMHeadModel

from malmoi.configs.outputs import CheckpointSettings
from malmoi.train.backends.state_dict import state_tensors
from malmoi.train.checkpoint.async_writer import CheckpointWriter
from malmoi.train.checkpoint.format import MODEL_FILE
from malmoi.train.checkpoint.storage import LocalStorage
from malmoi.train.checkpoint.train_state import TrainState


@dataclass(frozen=True)
class Saving:
    """One way of saving: medians of the rounds."""

    way: str
    stall_seconds: float
    seconds_until_on_disk: float
    share_of_synchronous: float
    """Its stall over that of Malmoi's synchronous save."""
    megabytes: float


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    parameters: int
    figures: list[Saving]
    embeddings: list[str]


def model_with_moments(shape: Shape) -> tuple[GPT2LMHeadModel, torch.optim.Optimizer]:
    size = {"n_layer": shape.layers, "n_embd": shape.width, "n_head": shape.heads, "n_positions": shape.block}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=shape.vocab, bos_token_id=0, eos_token_id=0, **size))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def timed(save: Callable[[], object], wait: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that training waits, and those until the checkpoint is on disk."""
    began = time.perf_counter()
    save()
    stall = time.perf_counter() - began
    wait()
    return stall, time.perf_counter() - began


def main() -> None:
    parser = new_parser(__doc__, "124M", rounds=3)
    parser.add_argument("--folder", type=Path, help="where to write; none: the system's folder for temporary files")
    options = parse_options(parser)
    model, optimizer = model_with_moments(options.shape)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model, optimizer)
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        names = ("malmoi synchronous", "malmoi asynchronous", "accelerate save_state", "torch.save")
        folders = {name: Path(work) / name for name in names}
        folders["torch.save"].mkdir()

        def malmoi_way(name: str) -> Callable[[], tuple[float, float]]:
            settings = CheckpointSettings(keep_last=1, async_save=name == "malmoi asynchronous")
            writer = CheckpointWriter(LocalStorage(str(folders[name])), settings)

            def save() -> tuple[float, float]:
                step = (writer.saved_step or 0) + 1
                state = TrainState(step, step, 0, 0, "f" * 32, None, None)
                seconds = timed(lambda: writer.save(state, state_tensors(model, optimizer)), writer.wait)
                assert not writer.problems, writer.problems
                return seconds

            return save

        def torch_way() -> None:
            state = {"model": prepared[0].state_dict(), "optimizer": prepared[1].state_dict()}
            torch.save(state, folders["torch.save"] / "state.pt")

        accelerate_folder = str(folders["accelerate save_state"])
        ways = {
            **{name: malmoi_way(name) for name in names[:2]},
            "accelerate save_state": lambda: timed(lambda: accelerator.save_state(accelerate_folder), os.sync),
            "torch.save": lambda: timed(torch_way, os.sync),
        }
        seconds = in_turns(ways, options.rounds)  # the first round allocates the copies
        sizes = {
            name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            for name, folder in folders.items()
        }
        newest = next(folders["malmoi asynchronous"].glob("step-*"))
        with safe_open(newest / MODEL_FILE, framework="pt") as file:
            stored = set(file.keys())
    stalls = {name: median([stall for stall, _ in taken]) for name, taken in seconds.items()}
    figures = [
        Saving(
            name,
            stalls[name],
            median([on_disk for _, on_disk in taken]),
            round(stalls[name] / stalls["malmoi synchronous"], 3),
            round(sizes[name] / 1e6, 1),
        )
        for name, taken in seconds.items()
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print_figures(Figures(parameters, figures, sorted(stored & {"transformer.wte.weight", "lm_head.weight"})))


if __name__ == "__main__":
    main()
