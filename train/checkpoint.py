"""Checkpoints that are whole or not there, in files that hold no code.

A checkpoint is a folder `step-000100` with `model.safetensors`, `optimizer.safetensors` (both by parameter name,
whole and in fp32, whatever backend wrote them) and, written last, `state.json` with the counters and every file's
size and checksum. It is written beside its final name and renamed; one whose files do not match is named and passed
over. A folder is renamed before it is deleted, so that none is ever seen half.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import fsync_path
from data_prep.manifest import FileRecord, file_record
from data_prep.space import readable_bytes
from data_prep.verify import file_faults
from train.divergence import DivergenceState, divergence_state
from train.loss_scale import LossScaleState
from train.parameter_tensors import WEIGHT

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FORMAT_VERSION = 2
WRITING, REPLACED, DELETED = "writing", "replaced", "deleted"


class CheckpointNotSavedError(Exception):
    """The disk did not take a checkpoint; its text says which and why."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    """Updates tried, skipped ones included."""
    samples: int
    """Samples consumed, those that a rollback passed over included."""
    skipped_steps: int
    """Updates whose gradient was not finite."""
    rollbacks: int
    """Times that the run went back to a checkpoint because its loss or gradient had gone wrong."""
    data_fingerprint: str
    loss_scale: LossScaleState | None
    """Where fp16's loss scale stands; none in other precisions."""
    held_out_loss: float | None
    """Nats a token at this very step; none where it was not evaluated."""
    divergence: DivergenceState | None = None
    """The course of losses that the next ones are held against."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    progress: Progress


class CheckpointTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint under the backends' names, each read when it is asked for, onto the CPU."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        # safetensors' own annotations are incomplete.
        self._files: list[Any] = [
            safe_open(checkpoint.folder / file, framework="pt") for file in (MODEL_FILE, OPTIMIZER_FILE)
        ]
        self._weights, self._moments = (set(file.keys()) for file in self._files)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._moments:
            moment: Tensor = self._files[1].get_tensor(name)
            return moment
        weight = name.removeprefix(f"{WEIGHT}.")
        if not name.startswith(f"{WEIGHT}.") or weight not in self._weights:
            raise KeyError(name)
        tensor: Tensor = self._files[0].get_tensor(weight)
        return tensor

    def __iter__(self) -> Iterator[str]:
        yield from (f"{WEIGHT}.{name}" for name in sorted(self._weights))
        yield from sorted(self._moments)

    def __len__(self) -> int:
        return len(self._weights) + len(self._moments)


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step-{step:06d}"


def save_checkpoint(checkpoints: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> Path:
    """Write `checkpoints/step-NNNNNN` and return it once it is safe on disk.

    Args:
        tensors: by the backends' names, on the CPU.

    Raises:
        CheckpointNotSavedError: the disk is full or not writable; what was there before is untouched.
    """
    final = checkpoint_folder(checkpoints, progress.step)
    temporary = _beside(final, WRITING)
    prefix = f"{WEIGHT}."
    parts = {
        MODEL_FILE: {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
        OPTIMIZER_FILE: {name: t for name, t in tensors.items() if not name.startswith(prefix)},
    }
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _require_space(temporary, sum(tensor.nbytes for tensor in tensors.values()))
        for name, part in parts.items():
            save_file(part, temporary / name)
            fsync_path(temporary / name)
        files = [asdict(file_record(temporary / name)) for name in parts]
        state = {"format_version": FORMAT_VERSION, "progress": asdict(progress), "files": files}
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
        fsync_path(temporary / STATE_FILE)
        fsync_path(temporary)
        if final.exists():
            final.rename(_beside(final, REPLACED))
        temporary.rename(final)
        fsync_path(checkpoints)
        shutil.rmtree(_beside(final, REPLACED), ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointNotSavedError(f"{final}: not saved ({error}); make room") from error
    return final


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"it needs {readable_bytes(needed)}, {readable_bytes(free)} are free")


def _beside(final: Path, state: str) -> Path:
    return final.with_name(f".{final.name}.{state}")


def mend_leftovers(checkpoints: Path) -> None:
    """Clear away what a killed process left half done: unfinished folders go, a replaced one comes back."""
    for folder in checkpoints.glob(f".step-*.{REPLACED}"):
        final = folder.with_name(folder.name.removeprefix(".").removesuffix(f".{REPLACED}"))
        if final.exists():
            shutil.rmtree(folder)
        else:
            folder.rename(final)
    for state in (WRITING, DELETED):
        for folder in checkpoints.glob(f".step-*.{state}"):
            shutil.rmtree(folder)


def checkpoint_faults(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, a line each; empty where it is whole."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        if state["format_version"] != FORMAT_VERSION:
            return [f"{folder / STATE_FILE}: format {state['format_version']}, this Malmoi reads {FORMAT_VERSION}"]
        _progress(state["progress"])
        files = tuple(FileRecord(**file) for file in state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / STATE_FILE}: missing or broken ({error})"]
    return file_faults(folder, files)


def _progress(record: dict[str, object]) -> Progress:
    scale, divergence = record["loss_scale"], record.get("divergence")
    parts = {
        "loss_scale": LossScaleState(**scale) if isinstance(scale, dict) else None,
        "divergence": divergence_state(divergence) if isinstance(divergence, dict) else None,
    }
    # Unknown or missing counters raise TypeError, which the caller reports.
    return Progress(**{**record, **parts})  # type: ignore[arg-type]


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint that `checkpoint_faults` found whole."""
    return Checkpoint(folder, _progress(json.loads((folder / STATE_FILE).read_text())["progress"]))


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """All checkpoints, newest first, whole or not; a copy that somebody made under another name is none."""
    steps = {folder: folder.name.removeprefix("step-") for folder in checkpoints.glob("step-*")}
    ours = [folder for folder, step in steps.items() if step.isascii() and step.isdigit()]
    return sorted(ours, key=lambda folder: int(steps[folder]), reverse=True)


def newest_whole_checkpoint(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are as they were written, and the faults of newer ones."""
    faults: list[str] = []
    for folder in checkpoint_folders(checkpoints):
        found = checkpoint_faults(folder)
        if not found:
            return read_checkpoint(folder), faults
        faults += found
    return None, faults


def best_whole_checkpoint(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The whole checkpoint of lowest held-out loss, or where none was looked at the newest whole one, and the faults
    of those before it in that order."""
    folders = checkpoint_folders(checkpoints)
    best = _by_held_out_loss(folders)
    faults: list[str] = []
    for folder in [*best, *(folder for folder in folders if folder not in best)]:
        found = checkpoint_faults(folder)
        if not found:
            return read_checkpoint(folder), faults
        faults += found
    return None, faults


def _by_held_out_loss(folders: list[Path]) -> list[Path]:
    """Those with a loss, and one that is a number, the lowest first, and of equal ones the earlier."""
    scored = []
    for folder in folders:
        try:
            loss = read_checkpoint(folder).progress.held_out_loss
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged one has no claim to be the best
        if loss is not None and math.isfinite(loss):
            scored.append((loss, folder))
    return [folder for _, folder in sorted(scored)]


def delete_older(checkpoints: Path, keep_last: int, keep_best: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the `keep_best` of lowest held-out loss.

    Raises:
        OSError: the disk did not let one go.
    """
    folders = checkpoint_folders(checkpoints)
    best = _by_held_out_loss(folders)[:keep_best] if keep_best else []
    kept = {*folders[: max(1, keep_last)], *best}
    for folder in folders:
        if folder not in kept:
            doomed = _beside(folder, DELETED)
            folder.rename(doomed)
            shutil.rmtree(doomed)
