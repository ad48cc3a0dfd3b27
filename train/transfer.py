"""From arrays on the host to tensors where the model computes."""

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
