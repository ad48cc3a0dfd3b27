"""Muon: momentum whose matrix is orthogonalised before it is added to the weights.

torch's own Muon multiplies in bf16 everywhere, which a processor without bf16 units does a hundred times slower
than fp32. This one is the same update, equal to torch's bit for bit in bf16, in a precision that the device has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from train.hardware import has_fast_bf16
from train.sharding import placed_like, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al., "Muon", 2024), whose slope at zero is the steepest."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrix with all singular values near 1 (0.7 to 1.2), by five Newton-Schulz iterations in `dtype`."""
    first, second, third = NEWTON_SCHULZ
    x = matrix.to(dtype, copy=True)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=SMALLEST_NORM))
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; its state is one `momentum_buffer` a parameter.

    The update is scaled by 0.2 sqrt(the larger side), AdamW's usual root mean square (Liu et al., "Muon is
    Scalable for LLM Training", 2025), so that AdamW's learning rates fit it too.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(list(parameters), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not supported and must be none."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"])
                dtype = torch.bfloat16 if has_fast_bf16(parameter.device) else torch.float32
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                # A matrix that is cut over ranks is put together first: its rows are no matrix of their own.
                orthogonal = placed_like(orthogonalized(whole(update), dtype), parameter)
                parameter.add_(orthogonal, alpha=-group["lr"] * scale)
