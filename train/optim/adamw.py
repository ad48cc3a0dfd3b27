"""AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019), by torch's fused kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from malmoi.configs.optim import OptimSettings
from malmoi.train.optim.param_roles import ModelParameter
from malmoi.train.optim.spec import OptimizerSpec


def adamw(parameters: Sequence[Tensor], settings: OptimSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW that decays matrices, and not biases and norms."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def build(parameters: Sequence[ModelParameter], settings: OptimSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all of a model's parameters."""
    return adamw([parameter.tensor for parameter in parameters], settings, device)


SPEC = OptimizerSpec(
    build=build,
    state_keys=frozenset({"exp_avg", "exp_avg_sq"}),
    scalar_keys=frozenset({"step"}),
    # Two moments in fp32.
    state_bytes=lambda parameters, matrices: 8 * parameters,
)
