"""Weights and moments under the names that checkpoints use, and the update that most backends share."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from train.backend import Update
from train.loss_scale import LossScaleState
from train.sharding import placed_like, whole
from train.transfer import HostNumber

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
    division with that by `scale`. Where torch's fused kernel updates all parameters it does both, and decides whether
    to update, by numbers that the host has not seen.
    """
    factor = scale.scale if scale else 1.0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients)) / factor
    excess = ((norm + SMALLEST_NORM) / clip_norm).clamp(min=1.0) if clip_norm else torch.ones_like(norm)
    travelling, is_fused = HostNumber(norm), bool(optimizer.defaults.get("fused"))
    if is_fused:
        # What torch's GradScaler hands to the same kernels.
        optimizer.grad_scale = excess * factor  # type: ignore[attr-defined]
        optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
        optimizer.step()
    elif math.isfinite(travelling.value()):
        torch._foreach_div_(gradients, excess * factor)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Update(travelling, is_fused)
