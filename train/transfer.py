"""Between the host and the device where the model computes, neither waiting for the other."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` on `device`. To a GPU it travels from pinned memory while the host goes on: from any other memory the
    host would wait until all that is queued there is done."""
    if device.type == "cpu":
        return torch.from_numpy(array)
    return torch.from_numpy(np.ascontiguousarray(array)).pin_memory().to(device, non_blocking=True)


class HostNumber:
    """A device's number, a tensor of one element, on its way to the host from when this is made."""

    def __init__(self, number: Tensor) -> None:
        self._number = number.detach().to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if number.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def value(self) -> float:
        """Waits for the number, and not for what the device was given to do after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._number)
