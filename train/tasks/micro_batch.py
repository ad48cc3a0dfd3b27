"""The largest micro-batch that a rank's memory takes."""

from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor, nn

from malmoi.disk_space import readable_bytes
from malmoi.errors import UserError
from malmoi.ranks import launched_ranks
from malmoi.train.distributed.dist_env import HALF_DTYPES, DistEnv
from malmoi.train.tasks.base import Task

STATE_BYTES_A_PARAMETER = 12
"""Gradients are made by the trial itself; what it lacks are two moments in fp32, and room for a gathered copy."""
USABLE = 0.9
"""Of the free memory, where what is needed is computed: allocators and collectives take some."""


def divisors_downwards(number: int) -> Iterator[int]:
    """Yield `number` and its divisors, the largest first."""
    return (candidate for candidate in range(number, 0, -1) if number % candidate == 0)


def largest_micro_batch(model: nn.Module, task: Task, samples_a_rank: int, env: DistEnv) -> int:
    """Return the largest divisor of `samples_a_rank` with which a forward and backward pass fits on every rank.

    Args:
        model: computing as it will in training, on the rank's device, before a backend wraps it.
        samples_a_rank: of one optimizer step; accumulation makes up for a smaller micro-batch, so the run is the same.

    Raises:
        UserError: not even one sample fits.
    """
    fits = _trial(model, task, env)
    for size in divisors_downwards(samples_a_rank):
        fitting = torch.tensor(int(fits(size)), device=env.device)
        if int(env.accelerator.reduce(fitting, "sum")) == env.dims.dp_size:
            return size
    raise UserError(
        "train.micro_batch_size auto: not even one sample fits into memory beside the full model; set "
        "train.micro_batch_size 1 with parallel.backend zero3 or fsdp2, or take a smaller model.block_size"
    )


def largest_computed_micro_batch(needed_bytes: Callable[[int], int], samples_a_rank: int, env: DistEnv) -> int:
    """Return the largest divisor of `samples_a_rank` whose computed memory goes into what is free on every rank: none
    can try a model alone that only all of them hold.

    Args:
        needed_bytes: from a micro-batch's size to the bytes that training takes on a rank.

    Raises:
        UserError: not even one sample fits.
    """
    free = torch.tensor(int(USABLE * free_bytes(env.device)), device=env.device)
    least = int(env.accelerator.gather(free).min())
    for size in divisors_downwards(samples_a_rank):
        if needed_bytes(size) <= least:
            return size
    raise UserError(
        f"train.micro_batch_size auto: one sample takes {readable_bytes(needed_bytes(1))} a rank, and "
        f"{readable_bytes(least)} are usable; take more ranks, train.activation_checkpointing or a smaller "
        "model.block_size"
    )


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this rank can still take on its device; on a CPU, its share of them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // max(1, launched_ranks().local_count)


def _trial(model: nn.Module, task: Task, env: DistEnv) -> Callable[[int], bool]:
    """Return a function that tries a size on this rank alone, without a collective, with room kept for an optimizer.

    A CPU's memory refuses nothing until all of it is used and the process is killed: there, sizes are tried only as
    far as what one sample keeps for its backward pass goes into what is free.
    """
    device, dtype = env.device, HALF_DTYPES.get(env.precision)
    parameters = list(model.parameters())
    reserved = STATE_BYTES_A_PARAMETER * sum(parameter.numel() for parameter in parameters)

    def loss_sum(size: int) -> Tensor:
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return task.loss_sum(model, task.largest(size), device)

    def fits(size: int) -> bool:
        try:
            reserve = torch.empty(reserved, dtype=torch.uint8, device=device)
            torch.autograd.backward(loss_sum(size))
            del reserve
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True

    if device.type != "cpu":
        return fits
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    a_sample = kept_bytes(lambda: loss_sum(1), own)
    free = free_bytes(device) - reserved
    return lambda size: size * a_sample <= free and fits(size)


def kept_bytes(forward: Callable[[], Tensor], own: set[int]) -> int:
    """Return the bytes of the tensors that `forward` keeps for a backward pass, but those of storages at `own`."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Alive until all are counted, so that no two have had the same place.
        loss = forward()
    del loss
    return sum(kept.values())
