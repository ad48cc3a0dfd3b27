"""Muon: momentum that is orthogonalized before it is added to the weights; AdamW for what is not a matrix of a block.

torch's own Muon multiplies in bf16 everywhere, which a CPU without bf16 instructions does a hundred times slower than
fp32. This one equals torch's bit for bit in bf16, and multiplies in a precision that the device has.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from malmoi.configs.optim import OptimSettings
from malmoi.train.distributed.device import has_fast_bf16
from malmoi.train.distributed.dtensor import local_tensor
from malmoi.train.optim.adamw import adamw
from malmoi.train.optim.matrix_exchange import HeldMatrix, HoldingRanks, held_matrix, holding_ranks, worked_on
from malmoi.train.optim.param_roles import ModelParameter
from malmoi.train.optim.spec import FlatPieces, OptimizerSpec

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al., "Muon", 2024), whose slope at zero is the steepest."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7
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

    Where several ranks step the same matrices, or hold parts of them, each orthogonalizes its share of them.
    """

    def __init__(
        self, parameters: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "num_matrices": 1})
        self._pieces: FlatPieces = {}
        self._pieces_ranks: HoldingRanks | None = None

    def lay_out(self, pieces: FlatPieces, device: torch.device) -> None:
        """Step the matrices in flat pieces that all ranks hold together, exchanged on `device`."""
        self._pieces = pieces
        self._pieces_ranks = HoldingRanks(device, sharing=distributed.group.WORLD)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        stepped = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not stepped:
            return
        ranks = self._pieces_ranks or holding_ranks(stepped[0][0])
        steps = [step for parameter, group in stepped for step in self._steps(parameter, group, ranks)]
        dtype = torch.bfloat16 if has_fast_bf16(ranks.device) else torch.float32
        runs = worked_on(
            [step.matrix for step in steps],
            ranks,
            dtype,
            lambda number: steps[number].update().to(dtype),
            lambda number, matrix: orthogonalized_side_by_side(matrix, steps[number].matrix.parts, dtype),
        )
        for number, run in runs:
            steps[number].apply(run)

    def _steps(self, parameter: Tensor, group: dict[str, Any], ranks: HoldingRanks) -> Iterator["_Step"]:
        """Update a parameter's momentum, and yield the steps of the matrices in it."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        weights, gradient, buffer = (
            local_tensor(each).view(-1) for each in (parameter, parameter.grad, state["momentum_buffer"])
        )
        momentum, parts = group["momentum"], group["num_matrices"]
        buffer.lerp_(gradient, 1 - momentum)
        if parameter in self._pieces:
            pieces = self._pieces[parameter]
            held = [(HeldMatrix(run.shape[0], run.shape[1], parts, run.runs), run.start) for run in pieces]
        else:
            held = [(held_matrix(parameter, parts, ranks.num_shares), 0)]
        for matrix, start in held:
            end = start + matrix.runs[ranks.share]
            yield _Step(
                matrix,
                weights[start:end],
                gradient[start:end],
                buffer[start:end],
                momentum,
                group["lr"],
                group["weight_decay"],
            )


@dataclass(frozen=True)
class _Step:
    """A matrix's step: this rank's run of it."""

    matrix: HeldMatrix
    weights: Tensor
    gradient: Tensor
    momentum_buffer: Tensor
    momentum: float
    rate: float
    weight_decay: float

    def update(self) -> Tensor:
        """What is orthogonalized, with Nesterov's momentum."""
        return self.gradient.lerp(self.momentum_buffer, self.momentum)

    def apply(self, orthogonal: Tensor) -> None:
        self.weights.mul_(1 - self.rate * self.weight_decay)
        scale = 0.2 * max(self.matrix.rows, self.matrix.columns // self.matrix.parts) ** 0.5
        self.weights.add_(orthogonal.to(self.weights.device), alpha=-self.rate * scale)


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
        # One state: what Accelerate, the loss scaler and a checkpoint see is what steps.
        self.muon.state = self.adamw.state = self.state
        self._share_groups()

    def lay_out(self, pieces: FlatPieces, device: torch.device) -> None:
        """Step flat pieces, as `Muon.lay_out` says."""
        self.muon.lay_out(pieces, device)

    def _share_groups(self) -> None:
        self.muon.param_groups = [group for group in self.param_groups if "num_matrices" in group]
        self.adamw.param_groups = [group for group in self.param_groups if "num_matrices" not in group]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step all parameters; a closure is not supported."""
        assert closure is None
        # DeepSpeed has one group stepped at a time.
        self._share_groups()
        self.muon.step()
        self.adamw.step()


def lay_out(optimizer: torch.optim.Optimizer, pieces: FlatPieces, device: torch.device) -> None:
    """Have a `MuonWithAdamW` step ZeRO's flat pieces."""
    assert isinstance(optimizer, MuonWithAdamW)
    optimizer.lay_out(pieces, device)


SPEC = OptimizerSpec(
    build=MuonWithAdamW,
    state_keys=frozenset({"exp_avg", "exp_avg_sq", "momentum_buffer"}),
    scalar_keys=frozenset({"step"}),
    # AdamW's two moments, and one for matrices.
    state_bytes=lambda parameters, matrices: 8 * parameters - 4 * matrices,
    needs_full_matrices=True,
    lay_out=lay_out,
)
