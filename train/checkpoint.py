"""Checkpoints that are whole or not there, in files that hold no code.

A checkpoint is a folder `step-000100` with `model.safetensors`, `optimizer.safetensors` (both by parameter
name) and, written last, `state.json` with the counters and every file's size and checksum. It is written
beside its final name and renamed; one whose files do not match is named and passed over.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import BadInput
from data_prep.files import fsync_path
from data_prep.manifest import FileRecord, file_record
from data_prep.verify import file_faults

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


class CheckpointNotSavedError(Exception):
    """The disk did not take a checkpoint; its text says which and why."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    """Updates tried, skipped ones included."""
    samples: int
    """Samples consumed."""
    skipped_steps: int
    """Updates that fp16's loss scaling passed over."""
    data_fingerprint: str
    scaler: dict[str, float]
    """The loss scaler's state; empty without one."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    progress: Progress


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `MOMENT.PARAMETER` -> tensor."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value
    return tensors


def set_optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    for name, parameter in model.named_parameters():
        # AdamW's fused kernel wants its step counter beside the parameter.
        optimizer.state[parameter] = {
            moment: tensors[f"{moment}.{name}"].to(parameter.device)
            for moment in MOMENTS
            if f"{moment}.{name}" in tensors
        }


def save_checkpoint(
    checkpoints: Path, progress: Progress, model: dict[str, Tensor], optimizer: dict[str, Tensor]
) -> Path:
    """Write `checkpoints/step-NNNNNN` and return it once it is safe on disk.

    Raises:
        CheckpointNotSavedError: the disk is full or not writable; what was there before is untouched.
    """
    final = checkpoints / f"step-{progress.step:06d}"
    temporary = checkpoints / f".{final.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in model.items()}, temporary / MODEL_FILE)
        save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, temporary / OPTIMIZER_FILE)
        for file in (MODEL_FILE, OPTIMIZER_FILE):
            fsync_path(temporary / file)
        files = [file_record(temporary / file) for file in (MODEL_FILE, OPTIMIZER_FILE)]
        state = {"progress": asdict(progress), "files": [asdict(file) for file in files]}
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
        fsync_path(temporary / STATE_FILE)
        fsync_path(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        fsync_path(checkpoints)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointNotSavedError(f"{final}: not saved ({error}); make room, the run goes on") from error
    return final


def checkpoint_faults(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, a line each; empty where it is whole."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        Progress(**state["progress"])
        files = tuple(FileRecord(**file) for file in state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / STATE_FILE}: missing or broken ({error})"]
    return file_faults(folder, files)


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint that `checkpoint_faults` found whole."""
    state = json.loads((folder / STATE_FILE).read_text())
    return Checkpoint(folder, Progress(**state["progress"]))


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """All checkpoints, newest first, whole or not."""
    return sorted(checkpoints.glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")), reverse=True)


def newest_whole_checkpoint(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are as they were written, and the faults of newer ones."""
    faults: list[str] = []
    for folder in checkpoint_folders(checkpoints):
        found = checkpoint_faults(folder)
        if not found:
            return read_checkpoint(folder), faults
        faults += found
    return None, faults


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        BadInput: it is no safetensors file.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: cannot be read ({error})") from error


def delete_older(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for folder in checkpoint_folders(checkpoints)[keep:]:
        shutil.rmtree(folder)
