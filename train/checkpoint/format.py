"""Checkpoints, in files that hold no code.

A checkpoint is a folder `step-000100` with `model.safetensors`, `optimizer.safetensors` (both by parameter name, full
fp32 tensors, whatever backend wrote them) and, written last, `state.json` with the run's state, every file's size and
checksum, and one of its own. One whose files do not match is reported and skipped.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from malmoi.checked_json import checked_json, parse_checked_json
from malmoi.checksums import FileRecord, file_errors, file_record
from malmoi.errors import one_line
from malmoi.train.backends.state_dict import WEIGHT
from malmoi.train.checkpoint.storage import LAST_FILE, Storage, checkpoint_name, checkpoint_step
from malmoi.train.checkpoint.train_state import TrainState, train_state_from_json

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = LAST_FILE
FORMAT_VERSION = 4
WITHOUT_CHECKSUM = 3
"""The version before, whose `state.json` has no checksum of its own; it is read too."""


class CheckpointNotSavedError(Exception):
    """A checkpoint could not be written; its text says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in a local folder."""

    name: str
    folder: Path
    state: TrainState


class CheckpointTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint under the backends' names, each read to the CPU when it is asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        # safetensors' own annotations are incomplete.
        self._files: list[Any] = [
            safe_open(checkpoint.folder / file, framework="pt") for file in (MODEL_FILE, OPTIMIZER_FILE)
        ]
        self._weights, self._optimizer = (set(file.keys()) for file in self._files)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._optimizer:
            state: Tensor = self._files[1].get_tensor(name)
            return state
        weight = name.removeprefix(f"{WEIGHT}.")
        if not name.startswith(f"{WEIGHT}.") or weight not in self._weights:
            raise KeyError(name)
        tensor: Tensor = self._files[0].get_tensor(weight)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._optimizer or (
            isinstance(name, str) and name.startswith(f"{WEIGHT}.") and name.removeprefix(f"{WEIGHT}.") in self._weights
        )

    def __iter__(self) -> Iterator[str]:
        yield from (f"{WEIGHT}.{name}" for name in sorted(self._weights))
        yield from sorted(self._optimizer)

    def __len__(self) -> int:
        return len(self._weights) + len(self._optimizer)


def save_checkpoint(storage: Storage, state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; it is safe when this returns.

    Args:
        tensors: by the backends' names, on the CPU.

    Raises:
        CheckpointNotSavedError: it could not be written; what was there before is untouched.
    """
    name, prefix = checkpoint_name(state.step), f"{WEIGHT}."
    parts = {
        MODEL_FILE: {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
        OPTIMIZER_FILE: {name: t for name, t in tensors.items() if not name.startswith(prefix)},
    }

    def fill(folder: Path) -> None:
        for file, part in parts.items():
            save_file(part, folder / file)
        files = [asdict(file_record(folder / file)) for file in parts]
        record = {"format_version": FORMAT_VERSION, "state": asdict(state), "files": files}
        (folder / STATE_FILE).write_bytes(checked_json(record))

    try:
        storage.write(name, sum(tensor.nbytes for tensor in tensors.values()), fill)
    except (OSError, SafetensorError) as error:
        raise CheckpointNotSavedError(f"{storage.place(name)}: not saved ({error}); make room") from error


def checkpoint_errors(folder: Path) -> list[str]:
    """Return what is wrong with a checkpoint's files, a line each; empty where it is valid."""
    try:
        files = _read_state_file((folder / STATE_FILE).read_bytes()).files
    except (OSError, ValueError) as error:
        return [f"{folder / STATE_FILE}: missing or damaged ({one_line(error)})"]
    return file_errors(folder, files, "training resumes from the valid one before it; delete this one")


def read_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """Return a checkpoint that `checkpoint_errors` found valid.

    Raises:
        OSError, ValueError: its `state.json` is missing or damaged.
    """
    return _checkpoint_in(storage.open(name), name)


def _checkpoint_in(folder: Path, name: str) -> Checkpoint:
    return Checkpoint(name, folder, _read_state_file((folder / STATE_FILE).read_bytes()).state)


@dataclass(frozen=True)
class _StateFile:
    state: TrainState
    files: tuple[FileRecord, ...]


def _read_state_file(content: bytes) -> _StateFile:
    """Return what a `state.json` holds.

    Raises:
        ValueError: it is damaged, or of another version of Malmoi.
    """
    record = parse_checked_json(content)
    version = record.get("format_version")
    if version not in (FORMAT_VERSION, WITHOUT_CHECKSUM):
        raise ValueError(f"format {version}, this Malmoi reads {FORMAT_VERSION}")
    if unknown := record.keys() - {"format_version", "state", "files"}:
        raise ValueError(f"unknown key {min(unknown)!r}")
    try:
        return _StateFile(train_state_from_json(record["state"]), tuple(FileRecord(**file) for file in record["files"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def checkpoint_names(storage: Storage) -> list[str]:
    """Return all checkpoints, newest first, valid or not; a copy that somebody made under another name is none."""
    steps = {name: step for name in storage.names() if (step := checkpoint_step(name)) is not None}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def newest_valid_checkpoint(storage: Storage) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files are as they were written, and the errors of newer ones."""
    return _first_valid(storage, checkpoint_names(storage))


def best_valid_checkpoint(storage: Storage) -> tuple[Checkpoint | None, list[str]]:
    """Return the valid checkpoint of lowest validation loss, or where none was evaluated the newest valid one, and the
    errors of those before it in that order."""
    names = checkpoint_names(storage)
    best = _by_val_loss(storage, names)
    return _first_valid(storage, [*best, *(name for name in names if name not in best)])


def _first_valid(storage: Storage, names: list[str]) -> tuple[Checkpoint | None, list[str]]:
    errors: list[str] = []
    for name in names:
        folder = storage.open(name)
        found = checkpoint_errors(folder)
        if not found:
            return _checkpoint_in(folder, name), errors
        errors += found
    return None, errors


def _by_val_loss(storage: Storage, names: list[str]) -> list[str]:
    """Return those with a finite validation loss, the lowest first, and of equal ones the earlier step."""
    scored = []
    for name in names:
        try:
            loss = _read_state_file(storage.read_file(name, STATE_FILE)).state.val_loss
        except (OSError, ValueError):
            continue  # a damaged one has no claim to be the best
        if loss is not None and math.isfinite(loss):
            scored.append((loss, name))
    return [name for _, name in sorted(scored)]


def delete_older(storage: Storage, keep_last: int, keep_best: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the `keep_best` of lowest validation loss.

    Raises:
        OSError: one could not be deleted.
    """
    names = checkpoint_names(storage)
    best = _by_val_loss(storage, names)[:keep_best] if keep_best else []
    for name in names:
        if name not in {*names[: max(1, keep_last)], *best}:
            storage.delete(name)
