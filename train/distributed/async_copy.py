"""Copies between host and device that neither waits for."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` on `device`. To a GPU it is copied from pinned memory, asynchronously: from any other memory the host
    would wait until everything queued on the GPU is done."""
    if device.type == "cpu":
        return torch.from_numpy(array)
    return torch.from_numpy(np.ascontiguousarray(array)).pin_memory().to(device, non_blocking=True)


class AsyncScalar:
    """A one-element tensor, copied to the host in the background from when this is made."""

    def __init__(self, number: Tensor) -> None:
        self._number = number.detach().to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if number.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    def value(self) -> float:
        """Wait for the copy, and not for work that was queued after it."""
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._number)
