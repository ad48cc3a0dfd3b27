"""Read the samples of the next micro-batch while a GPU computes on this one."""

from collections.abc import Callable
from typing import Any

import torch


class Prefetcher:
    """Reads micro-batches of one size, and on request one before it is needed."""

    def __init__(self, read: Callable[[int, int], Any], micro_batch_size: int) -> None:
        """Read by `read(first_sample, count)`."""
        self._read, self._size = read, micro_batch_size
        self._first: int | None = None
        self._samples: Any = None

    def take(self, first_sample: int) -> Any:
        """Return the micro-batch that begins with `first_sample`."""
        if first_sample != self._first:
            return self._read(first_sample, self._size)
        samples, self._first, self._samples = self._samples, None, None
        return samples

    def prefetch(self, first_sample: int, device: torch.device) -> None:
        """Read a micro-batch while `device` computes; a CPU has computed by now, so it gains nothing."""
        if device.type != "cpu":
            self._first, self._samples = first_sample, self._read(first_sample, self._size)
