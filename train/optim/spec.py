"""What an optimizer's registry entry tells the rest of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from malmoi.configs.optim import OptimSettings
from malmoi.train.optim.param_roles import ModelParameter


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
    """Whether it cannot step a flat piece of a matrix, as ZeRO has it."""
