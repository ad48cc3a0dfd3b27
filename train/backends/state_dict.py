"""Weights and optimizer state by name, and the optimizer step, of backends on a torch optimizer."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from malmoi.errors import UserError
from malmoi.train.backends.base import StepResult
from malmoi.train.backends.grad_norm import total_norm
from malmoi.train.backends.loss_scale import LossScaleState
from malmoi.train.distributed.async_copy import AsyncScalar
from malmoi.train.distributed.dtensor import full_tensor, sharded_like
from malmoi.train.optim import OptimizerSpec

WEIGHT = "model"
SMALLEST_NORM = 1e-6
"""Added to the norm by which a gradient is divided, as `torch.nn.utils.clip_grad_norm_` does."""


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield `model.PARAMETER` for all parameters, then `KEY.PARAMETER` of those that the optimizer has stepped, full.

    Raises:
        TypeError: the optimizer keeps something other than tensors, which a checkpoint could not hold.
    """
    for name, parameter in model.named_parameters():
        yield f"{WEIGHT}.{name}", full_tensor(parameter.detach())
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"the optimizer keeps {key} of {name} as {type(value).__name__}; keep it in a tensor")
            yield f"{key}.{name}", full_tensor(value)


def require_declared_state(optimizer: torch.optim.Optimizer, spec: OptimizerSpec) -> None:
    """Check that `spec` declares all state that the optimizer keeps, since only that can be loaded.

    Raises:
        TypeError: it does not.
    """
    for key in {key for state in optimizer.state.values() for key in state} - spec.state_keys - spec.scalar_keys:
        raise TypeError(f"the optimizer keeps {key}, which its OptimizerSpec does not declare; add it to state_keys")


def require_known_state(names: Mapping[str, Tensor], model: nn.Module, optimizer: OptimizerSpec) -> None:
    """Check that each of a checkpoint's tensors has a place, so that none is dropped.

    Raises:
        UserError: the checkpoint holds optimizer state or parameters of another kind.
    """
    parameters = {name for name, _ in model.named_parameters()}
    keys = optimizer.state_keys | optimizer.scalar_keys | {WEIGHT}
    for name in names:
        key, _, parameter = name.partition(".")
        if key not in keys or parameter not in parameters:
            raise UserError(
                f"the checkpoint holds {name}, which the model and optimizer of this run do not have; resume with the "
                "optim.name and model that it was trained with, or choose another --run"
            )


def tensor_of_shape(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Return a checkpoint's tensor called `name`.

    Args:
        shape: of the full tensor.

    Raises:
        UserError: the checkpoint lacks it, or it has another shape.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape:
        held = "lacks it" if tensor is None else f"holds it with {list(tensor.shape)}"
        raise UserError(
            f"{name} has the shape {list(shape)} in this run, and the checkpoint {held}; resume with the model that it "
            "was trained with, or choose another --run"
        )
    return tensor


def load_state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, spec: OptimizerSpec, tensors: Mapping[str, Tensor]
) -> None:
    """Load what `state_tensors` gave; a rank keeps its own part of what is sharded.

    Raises:
        UserError: a tensor has no place in model and optimizer, is missing, or has another shape.
    """
    require_known_state(tensors, model, spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = tensor_of_shape(tensors, f"{WEIGHT}.{name}", parameter.shape)
            parameter.copy_(sharded_like(weight, parameter))
    for name, parameter in model.named_parameters():
        state = {
            key: sharded_like(tensor_of_shape(tensors, f"{key}.{name}", parameter.shape), parameter).clone()
            for key in sorted(spec.state_keys)
            if f"{key}.{name}" in tensors
        }
        # The fused kernels want their step counter beside the parameter.
        state |= {
            key: tensors[f"{key}.{name}"].to(parameter.device, copy=True)
            for key in sorted(spec.scalar_keys)
            if f"{key}.{name}" in tensors
        }
        optimizer.state[parameter] = state


def clip_and_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, scale: LossScaleState | None
) -> StepResult:
    """Step by the gradients of a loss that was multiplied by `scale`, and clear them.

    Where their norm is not finite, the step is skipped. Clipping is `torch.nn.utils.clip_grad_norm_`'s, in one division
    with that by `scale`. Where torch's fused kernel steps all parameters it does both, and decides whether to skip, by
    numbers that the host has not seen.
    """
    factor = scale.scale if scale else 1.0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = total_norm(gradients) / factor
    excess = ((norm + SMALLEST_NORM) / max_grad_norm).clamp(min=1.0) if max_grad_norm else torch.ones_like(norm)
    grad_norm, is_fused = AsyncScalar(norm), bool(optimizer.defaults.get("fused"))
    if is_fused:
        # What torch's GradScaler hands to the same kernels.
        optimizer.grad_scale = excess * factor  # type: ignore[attr-defined]
        optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
        optimizer.step()
    elif math.isfinite(grad_norm.value()):
        torch._foreach_div_(gradients, excess * factor)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(grad_norm, is_fused)
