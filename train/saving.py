"""Checkpoints written while training goes on."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.checkpoint import CheckpointNotSavedError, Progress, delete_older, save_checkpoint


@dataclass(frozen=True)
class SavePolicy:
    """Where checkpoints go, how many stay, and whether the loop waits for the disk."""

    checkpoints: Path
    keep_last: int
    keep_best: int
    asynchronous: bool


@dataclass(frozen=True)
class _Written:
    """A checkpoint that is safe on disk, and what went wrong afterwards."""

    step: int
    problem: str | None


class CheckpointWriter:
    """Rank 0's writer: one checkpoint at a time, from a copy of the state in the host's memory.

    The copy's memory is kept from one checkpoint to the next; touching new pages would take longer than copying.
    """

    def __init__(self, policy: SavePolicy) -> None:
        self._policy = policy
        self._copy: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[_Written] | None = None
        self.saved_step: int | None = None
        """Step of the newest checkpoint that is safe on disk."""
        self.problems: list[str] = []
        """What could not be saved or deleted, and why; whoever shows them takes them out."""

    def save(self, progress: Progress, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the state, and write it: before this returns, or with `asynchronous` on the writer's own time.

        A write that is still going on is waited for first.
        """
        self.wait()
        taken = {name: self._copied(name, tensor) for name, tensor in tensors}
        if taken and torch.cuda.is_available():
            torch.cuda.synchronize()
        self._copy = taken
        self._writing = self._thread.submit(self._write, progress)
        if not self._policy.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is None:
            return
        try:
            written = self._writing.result()
            self.saved_step = written.step
            if written.problem is not None:
                self.problems.append(written.problem)
        except CheckpointNotSavedError as error:
            self.problems.append(str(error))
        self._writing = None

    def poll(self) -> None:
        """Take note of a write that has ended, without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        held = self._copy.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return held.copy_(tensor, non_blocking=tensor.is_cuda)

    def _write(self, progress: Progress) -> _Written:
        save_checkpoint(self._policy.checkpoints, progress, self._copy)
        try:
            delete_older(self._policy.checkpoints, self._policy.keep_last, self._policy.keep_best)
        except OSError as error:
            place = error.filename or self._policy.checkpoints
            return _Written(
                progress.step, f"{place}: an older checkpoint cannot be deleted ({error.strerror}); delete it"
            )
        return _Written(progress.step, None)
