"""Checkpoints written while training continues."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from malmoi.configs.outputs import CheckpointSettings
from malmoi.train.checkpoint.format import CheckpointNotSavedError, delete_older, save_checkpoint
from malmoi.train.checkpoint.storage import Storage
from malmoi.train.checkpoint.train_state import TrainState


@dataclass(frozen=True)
class _Written:
    """A checkpoint that is safe, and what went wrong afterwards."""

    step: int
    problem: str | None


class CheckpointWriter:
    """Rank 0's writer: one checkpoint at a time, from a copy of the state in host memory.

    The copy's memory is kept from one checkpoint to the next; touching new pages would take longer than copying.
    """

    def __init__(self, storage: Storage, settings: CheckpointSettings) -> None:
        self._storage, self._settings = storage, settings
        self._copy: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[_Written] | None = None
        self.saved_step: int | None = None
        """Step of the newest checkpoint that is safe."""
        self.problems: list[str] = []
        """What could not be saved or deleted, and why; whoever shows them takes them out."""

    def save(self, state: TrainState, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the state, and write it: before this returns, or with `async_save` in the background.

        A write that is still running is waited for first.
        """
        self.wait()
        copied = {name: self._copied(name, tensor) for name, tensor in tensors}
        if copied and torch.cuda.is_available():
            torch.cuda.synchronize()
        self._copy = copied
        self._writing = self._thread.submit(self._write, state)
        if not self._settings.async_save:
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

    def _write(self, state: TrainState) -> _Written:
        save_checkpoint(self._storage, state, self._copy)
        try:
            delete_older(self._storage, self._settings.keep_last, self._settings.keep_best)
        except OSError as error:
            place = error.filename or self._storage.place("")
            return _Written(state.step, f"{place}: an older checkpoint cannot be deleted ({error.strerror}); delete it")
        return _Written(state.step, None)
