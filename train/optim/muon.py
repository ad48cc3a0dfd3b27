"""Muon: momentum that is orthogonalized before it is added to the weights; AdamW for what is not a matrix of a block.

torch's own Muon multiplies in bf16 everywhere, which a CPU without bf16 instructions does a hundred times slower than
fp32. This one equals torch's bit for bit in bf16, and multiplies in a precision that the device has.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from malmoi.configs.optim import OptimSettings
from malmoi.train.distributed.device import has_fast_bf16
from malmoi.train.distributed.dtensor import full_tensor, sharded_like
from malmoi.train.distributed.parallel_dims import process_group_dims
from malmoi.train.optim.adamw import adamw
from malmoi.train.optim.param_roles import ModelParameter
from malmoi.train.optim.spec import OptimizerSpec

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al., "Muon", 2024), whose slope at zero is the steepest."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7
MATRICES_IN_FLIGHT = 4
"""Matrices a rank held while they are broadcast: few, for memory's sake, and enough that no rank waits for another."""
MOMENTUM = 0.95
EMBEDDING_LR_FACTOR = 3.0
"""Learning rate of the embeddings as a multiple of the matrices': what benchmarks/learning.py found best."""


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


def orthogonalized_side_by_side(matrix: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    """`orthogonalized` of each of as many matrices as lie side by side in `matrix`."""
    if parts == 1:
        return orthogonalized(matrix, dtype)
    return torch.cat([orthogonalized(part, dtype) for part in matrix.chunk(parts, 1)], 1)


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; its state is one `momentum_buffer` a parameter.

    The step is scaled by 0.2 sqrt(the larger side), AdamW's usual root mean square (Liu et al., "Muon is
    Scalable for LLM Training", 2025), so that AdamW's learning rates fit it too. A group's `num_matrices` says how many
    matrices lie side by side in each of its parameters; each of them is a matrix of its own, its sides too.

    Where several ranks step the same matrices, each orthogonalizes its share of them and broadcasts it.
    """

    def __init__(
        self, parameters: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "num_matrices": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        dims = process_group_dims()
        owners = matrix_owners(self._stepped(), dims.dp_size)
        in_flight: deque[tuple[_Step, Tensor, distributed.Work | None]] = deque()
        for step, owner in zip(self._steps(), owners, strict=True):
            dtype = torch.bfloat16 if has_fast_bf16(step.parameter.device) else torch.float32
            # A sharded matrix is gathered first: its rows are no matrix of their own.
            update = full_tensor(step.update)
            if owner == dims.dp_rank:
                orthogonal = orthogonalized_side_by_side(update, step.parts, dtype).contiguous()
            else:
                orthogonal = torch.empty(update.shape, dtype=dtype, device=update.device)
            sent = distributed.broadcast(orthogonal, owner, async_op=True) if dims.dp_size > 1 else None
            in_flight.append((step, orthogonal, sent))
            if len(in_flight) > MATRICES_IN_FLIGHT * dims.dp_size:
                _apply(*in_flight.popleft())
        while in_flight:
            _apply(*in_flight.popleft())

    def _stepped(self) -> list[tuple[int, int, int]]:
        """For each parameter: matrices side by side, rows, and columns of each."""
        return [
            (group["num_matrices"], p.shape[0], p.shape[1] // group["num_matrices"])
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]

    def _steps(self) -> Iterator["_Step"]:
        """Yield the parameters with updated momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"])
                yield _Step(parameter, update, group["lr"], group["weight_decay"], group["num_matrices"])


@dataclass(frozen=True)
class _Step:
    """A parameter's step, before it is orthogonalized."""

    parameter: Tensor
    update: Tensor
    rate: float
    weight_decay: float
    parts: int


def _apply(step: _Step, orthogonal: Tensor, sent: distributed.Work | None) -> None:
    if sent is not None:
        sent.wait()
    step.parameter.mul_(1 - step.rate * step.weight_decay)
    rows, columns = step.parameter.shape
    scale = 0.2 * max(rows, columns // step.parts) ** 0.5
    step.parameter.add_(sharded_like(orthogonal, step.parameter), alpha=-step.rate * scale)


def matrix_owners(shapes: Sequence[tuple[int, int, int]], ranks: int) -> list[int]:
    """Return which rank orthogonalizes each of some parameters.

    Args:
        shapes: matrices side by side, rows, and columns of each.

    The largest come first, each to the rank with the least work so far.
    """
    work, owners = [0] * ranks, [0] * len(shapes)

    def cost(number: int) -> int:
        parts, *sides = shapes[number]
        short, long = sorted(sides)
        return parts * (2 * short * short * long + short**3)

    for number in sorted(range(len(shapes)), key=lambda number: (-cost(number), number)):
        owners[number] = min(range(ranks), key=lambda rank: (work[rank], rank))
        work[owners[number]] += cost(number)
    return owners


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the blocks' matrices, AdamW for embeddings, biases and norms.

    One learning rate serves both, the embeddings' a multiple of it, and both keep their state in this optimizer's
    `state`.
    """

    def __init__(self, parameters: Sequence[ModelParameter], settings: OptimSettings, device: torch.device) -> None:
        counts = sorted({p.num_matrices for p in parameters if p.role == "matrix"}, reverse=True)
        groups: list[dict[str, Any]] = [
            {
                "params": [p.tensor for p in parameters if p.role == "matrix" and p.num_matrices == count],
                "num_matrices": count,
            }
            for count in counts
        ]
        self.muon = Muon(groups, settings.lr, settings.weight_decay, MOMENTUM)
        self.adamw = adamw([p.tensor for p in parameters if p.role == "other"], settings, device)
        self.adamw.add_param_group(
            {
                "params": [p.tensor for p in parameters if p.role == "embedding"],
                "weight_decay": settings.weight_decay,
                "lr_factor": EMBEDDING_LR_FACTOR,
            }
        )
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        # One list of groups and one state: what Accelerate, the loss scaler and a checkpoint see is what steps.
        self.muon.param_groups = self.param_groups[: len(self.muon.param_groups)]
        self.adamw.param_groups = self.param_groups[len(self.muon.param_groups) :]
        self.muon.state = self.adamw.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step all parameters; a closure is not supported."""
        assert closure is None
        self.muon.step()
        self.adamw.step()


SPEC = OptimizerSpec(
    build=MuonWithAdamW,
    state_keys=frozenset({"exp_avg", "exp_avg_sq", "momentum_buffer"}),
    scalar_keys=frozenset({"step"}),
    # AdamW's two moments, and one for matrices.
    state_bytes=lambda parameters, matrices: 8 * parameters - 4 * matrices,
    needs_full_matrices=True,
)
