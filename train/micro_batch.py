"""The largest micro-batch that a rank's memory takes."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from configs.errors import BadInput
from configs.schema import Precision
from train.model import TrainedGPT2
from train.parallel import HALF_DTYPES

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

    Args:
        nats_of: the loss of so many samples.
    """

    def fits(size: int) -> bool:
        dtype = HALF_DTYPES.get(precision)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        try:
            reserve = torch.empty(STATE_BYTES_A_PARAMETER * parameters, dtype=torch.uint8, device=device)
            with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                nats = nats_of(size)
            torch.autograd.backward(nats)
            del reserve
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True

    return fits


def block_trial(
    model: TrainedGPT2, block_size: int, precision: Precision, device: torch.device
) -> Callable[[int], bool]:
    """`trial` of pre-training: samples are blocks, all of one length."""

    def nats_of(size: int) -> Tensor:
        ids = torch.zeros((size, block_size), dtype=torch.int64, device=device)
        nats: Tensor = model(ids, ids)
        return nats

    return trial(model, nats_of, precision, device)
