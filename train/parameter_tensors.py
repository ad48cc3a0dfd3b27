"""Weights and moments under the names that checkpoints use, and the update that most backends share."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from train.backend import Update
from train.loss_scale import LossScaleState
from train.sharding import placed_like, whole

WEIGHT = "model"
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
SMALLEST_NORM = 1e-6
"""Added to the norm by which a gradient is divided, as `torch.nn.utils.clip_grad_norm_` does."""


def parameter_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """`model.PARAMETER` for all, then `MOMENT.PARAMETER` of those that the optimiser has stepped, whole."""
    for name, parameter in model.named_parameters():
        yield f"{WEIGHT}.{name}", whole(parameter.detach())
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            yield f"{moment}.{name}", whole(value)


def load_parameters(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `parameter_tensors` gave; a rank keeps its own part of what is sharded."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(placed_like(tensors[f"{WEIGHT}.{name}"], parameter))
    for name, parameter in model.named_parameters():
        # AdamW's fused kernel wants its step counter beside the parameter.
        optimizer.state[parameter] = {
            moment: value.to(parameter.device, copy=True) if moment == "step" else placed_like(value, parameter).clone()
            for moment in MOMENTS
            if (value := tensors.get(f"{moment}.{name}")) is not None
        }


def clip_and_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, scale: LossScaleState | None
) -> Update:
    """One update from the gradients of a loss that was multiplied by `scale`; afterwards they are gone.

    Where their norm is not finite, nothing is updated. Clipping is `torch.nn.utils.clip_grad_norm_`'s, in one
    multiplication with the division by `scale`.
    """
    factor = scale.scale if scale else 1.0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = float(whole(torch.nn.utils.get_total_norm(gradients))) / factor
    is_finite = math.isfinite(norm)
    if is_finite:
        shrink = min(1.0, clip_norm / (norm + SMALLEST_NORM)) if clip_norm else 1.0
        if shrink != 1.0 or factor != 1.0:
            torch._foreach_mul_(gradients, shrink / factor)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Update(norm, skipped=not is_finite)
