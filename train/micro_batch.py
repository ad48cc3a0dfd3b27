"""The largest micro-batch that a rank's memory takes."""

import os
from collections.abc import Callable, Iterator

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from configs.errors import BadInput
from configs.schema import Precision
from train.parallel import HALF_DTYPES
from train.task import PreTraining

STATE_BYTES_A_PARAMETER = 12
"""Gradients are made by the trial itself; what it lacks are two moments in fp32, and room for a gathered copy."""


def divisors_downwards(number: int) -> Iterator[int]:
    """`number` and its divisors, the largest first."""
    return (candidate for candidate in range(number, 0, -1) if number % candidate == 0)


def largest_micro_batch(samples_a_rank: int, accelerator: Accelerator, fits: Callable[[int], bool]) -> int:
    """The largest divisor of `samples_a_rank` that fits on every rank.

    Args:
        samples_a_rank: of one update; accumulation makes up for a smaller micro-batch, so the run is the same.
        fits: tries a size on this rank alone, without a collective.

    Raises:
        BadInput: not even one sample fits.
    """
    for size in divisors_downwards(samples_a_rank):
        fitting = torch.tensor(int(fits(size)), device=accelerator.device)
        if int(accelerator.reduce(fitting, "sum")) == accelerator.num_processes:
            return size
    raise BadInput(
        "train.micro_batch auto: not even one sample fits into memory beside the whole model; set train.micro_batch 1 "
        "with parallel.backend zero3 or fsdp2, or take a smaller model.block_size"
    )


def trial(
    model: nn.Module, nats_of: Callable[[int], Tensor], precision: Precision, device: torch.device
) -> Callable[[int], bool]:
    """A forward and backward pass of the whole model, before it is cut over ranks, with room kept for an optimiser.

    A processor's memory refuses nothing until all of it is used up and the process is killed: there, sizes are tried
    only as far as what one sample keeps for its backward pass goes into what is free.

    Args:
        model: computing as it will in training.
        nats_of: the loss of so many samples.
    """
    dtype = HALF_DTYPES.get(precision)
    parameters = list(model.parameters())
    reserved = STATE_BYTES_A_PARAMETER * sum(parameter.numel() for parameter in parameters)

    def nats_in_precision(size: int) -> Tensor:
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return nats_of(size)

    def fits(size: int) -> bool:
        try:
            reserve = torch.empty(reserved, dtype=torch.uint8, device=device)
            torch.autograd.backward(nats_in_precision(size))
            del reserve
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True

    if device.type != "cpu":
        return fits
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    a_sample = kept_bytes(lambda: nats_in_precision(1), own)
    free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - reserved
    return lambda size: size * a_sample <= free and fits(size)


def kept_bytes(forward: Callable[[], Tensor], own: set[int]) -> int:
    """Bytes of the tensors that `forward` keeps for a backward pass, but those of storages that begin at `own`."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Alive until all are counted, so that no two have had the same place.
        nats = forward()
    del nats
    return sum(kept.values())


def block_trial(
    model: nn.Module, task: PreTraining, precision: Precision, device: torch.device
) -> Callable[[int], bool]:
    """`trial` of pre-training: samples of the run, whole ones."""

    def nats_of(size: int) -> Tensor:
        return task.nats(model, task.read(task.short_samples, size), device)

    return trial(model, nats_of, precision, device)
