"""Muon: momentum whose matrix is orthogonalised before it is added to the weights.

torch's own Muon multiplies in bf16 everywhere, which a processor without bf16 units does a hundred times slower
than fp32. This one is the same update, equal to torch's bit for bit in bf16, in a precision that the device has.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from train.hardware import has_fast_bf16
from train.sharding import placed_like, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al., "Muon", 2024), whose slope at zero is the steepest."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7
MATRICES_ON_THEIR_WAY = 4
"""A rank, held at once while they travel: few, for memory's sake, and enough that no rank waits for another."""


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


def orthogonalized_parts(matrix: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    """`orthogonalized` of each of as many matrices as lie side by side in `matrix`."""
    if parts == 1:
        return orthogonalized(matrix, dtype)
    return torch.cat([orthogonalized(part, dtype) for part in matrix.chunk(parts, 1)], 1)


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; its state is one `momentum_buffer` a parameter.

    The update is scaled by 0.2 sqrt(the larger side), AdamW's usual root mean square (Liu et al., "Muon is
    Scalable for LLM Training", 2025), so that AdamW's learning rates fit it too. A group's `parts` says how many
    matrices lie side by side in each of its parameters; each of them is a matrix of its own, its sides too.

    Where several ranks step the same matrices, each orthogonalises its share of them and sends it to the others.
    """

    def __init__(
        self, parameters: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not supported and must be none."""
        assert closure is None
        ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        rank = distributed.get_rank() if ranks > 1 else 0
        owners = shared_out(self._stepped(), ranks)
        on_their_way: deque[tuple[_Step, Tensor, distributed.Work | None]] = deque()
        for step, owner in zip(self._steps(), owners, strict=True):
            dtype = torch.bfloat16 if has_fast_bf16(step.parameter.device) else torch.float32
            # A matrix that is cut over ranks is put together first: its rows are no matrix of their own.
            update = whole(step.update)
            if owner == rank:
                orthogonal = orthogonalized_parts(update, step.parts, dtype).contiguous()
            else:
                orthogonal = torch.empty(update.shape, dtype=dtype, device=update.device)
            sent = distributed.broadcast(orthogonal, owner, async_op=True) if ranks > 1 else None
            on_their_way.append((step, orthogonal, sent))
            if len(on_their_way) > MATRICES_ON_THEIR_WAY * ranks:
                _take(*on_their_way.popleft())
        while on_their_way:
            _take(*on_their_way.popleft())

    def _stepped(self) -> list[tuple[int, int, int]]:
        """For each parameter: matrices side by side, rows, and columns of each."""
        return [
            (group["parts"], p.shape[0], p.shape[1] // group["parts"])
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]

    def _steps(self) -> Iterator["_Step"]:
        """Momentum taken up, one parameter after another."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"])
                yield _Step(parameter, update, group["lr"], group["weight_decay"], group["parts"])


@dataclass(frozen=True)
class _Step:
    """What a parameter's update is made of, before it is orthogonalised."""

    parameter: Tensor
    update: Tensor
    rate: float
    weight_decay: float
    parts: int


def _take(step: _Step, orthogonal: Tensor, sent: distributed.Work | None) -> None:
    if sent is not None:
        sent.wait()
    step.parameter.mul_(1 - step.rate * step.weight_decay)
    rows, columns = step.parameter.shape
    scale = 0.2 * max(rows, columns // step.parts) ** 0.5
    step.parameter.add_(placed_like(orthogonal, step.parameter), alpha=-step.rate * scale)


def shared_out(shapes: Sequence[tuple[int, int, int]], ranks: int) -> list[int]:
    """Which rank orthogonalises which of some parameters, each so many matrices of rows and columns: the largest first,
    each to the rank with the least work so far."""
    work, owners = [0] * ranks, [0] * len(shapes)

    def cost(number: int) -> int:
        parts, *sides = shapes[number]
        short, long = sorted(sides)
        return parts * (2 * short * short * long + short**3)

    for number in sorted(range(len(shapes)), key=lambda number: (-cost(number), number)):
        owners[number] = min(range(ranks), key=lambda rank: (work[rank], rank))
        work[owners[number]] += cost(number)
    return owners
