"""Between a full tensor and the shard of it that a rank holds."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor that a rank holds, or, where it is sharded, the one that all ranks hold together."""
    if not isinstance(tensor, DTensor):
        return tensor
    # Ranks reach each other from their devices only, and a shard may be kept in the host's memory.
    on_mesh = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(on_mesh, DTensor)
    return on_mesh.full_tensor()


def local_tensor(tensor: Tensor) -> Tensor:
    """The tensor that a rank holds, or, where it is sharded, the rank's shard, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which every rank has in full, on the device of `like` and sharded as that is; it may share memory."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    # Every rank has the full tensor, so none needs to send it.
    on_mesh = value.to(like.device_mesh.device_type)
    return distribute_tensor(on_mesh, like.device_mesh, like.placements, src_data_rank=None).to(like.device)
