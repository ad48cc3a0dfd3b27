"""Between a whole tensor and the part of it that a rank holds."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor that a rank holds, or, if it is sharded, the one that all ranks hold together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, beside: Tensor) -> Tensor:
    """`value`, which every rank has whole, on the device of `beside` and cut as that is; it may share memory."""
    if not isinstance(beside, DTensor):
        return value.to(beside.device)
    # Every rank has the whole tensor, so none needs to send it.
    return distribute_tensor(value.to(beside.device), beside.device_mesh, beside.placements, src_data_rank=None)
