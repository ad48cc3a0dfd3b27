"""The samples of the next micro-batch, read while a GPU computes on this one."""

from typing import Any

import torch

from train.task import Task


class ReadAhead:
    """Reads micro-batches of one size, and on request one before it is asked for."""

    def __init__(self, task: Task, micro_batch: int) -> None:
        self._task, self._micro_batch = task, micro_batch
        self._first: int | None = None
        self._samples: Any = None

    def take(self, first: int) -> Any:
        """Samples `first` on, as `Task.read` gives them."""
        if first != self._first:
            return self._task.read(first, self._micro_batch)
        samples, self._first, self._samples = self._samples, None, None
        return samples

    def read_while(self, device: torch.device, first: int) -> None:
        """Have samples `first` on ready while `device` computes; a CPU, which has computed by now, gains nothing."""
        if device.type != "cpu":
            self._first, self._samples = first, self._task.read(first, self._micro_batch)
