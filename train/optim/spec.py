"""What an optimizer's registry entry tells the rest of training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from malmoi.configs.optim import OptimSettings
from malmoi.train.optim.param_roles import ModelParameter


@dataclass(frozen=True)
class PieceRun:
    """A parameter whose numbers, row by row, lie in runs in the flat pieces of ZeRO's ranks, rank after rank."""

    shape: torch.Size
    """Of the whole parameter."""
    start: int
    """Of this rank's run in its piece."""
    runs: tuple[int, ...]
    """How many numbers each rank holds."""


FlatPieces = Mapping[Tensor, Sequence[PieceRun]]
"""What each flat piece that this rank steps has in it."""


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: all its state is one tensor a key and parameter, in `torch.optim.Optimizer.state`."""

    build: Callable[[Sequence[ModelParameter], OptimSettings, torch.device], torch.optim.Optimizer]
    """Makes it over a model's parameters. A group's `lr_factor`, where it has one, multiplies the learning rate."""
    state_keys: frozenset[str]
    """Keys of state tensors of a parameter's own shape."""
    state_bytes: Callable[[int, int], int]
    """Bytes of its state for (parameters in all, those of them in matrices of blocks)."""
    scalar_keys: frozenset[str] = frozenset()
    """Keys of state tensors of one number."""
    needs_full_matrices: bool = False
    """Whether a part of a matrix alone does not say how it is stepped."""
    lay_out: Callable[[torch.optim.Optimizer, FlatPieces, torch.device], None] | None = None
    """Tells it what is in the flat pieces that ZeRO has it step, and the device on which ranks exchange; None: one
    that needs full matrices cannot run under ZeRO."""
