"""Settings of the optimizer and of the learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malmoi.configs.ranges import (
    ClosedUnitInterval,
    FiniteNonNegative,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
)

OptimizerName = Literal["adamw", "muon"] | str
ScheduleName = Literal["cosine", "linear", "wsd", "constant"] | str


@dataclass(frozen=True)
class OptimSettings:
    """The optimizer."""

    name: OptimizerName = "adamw"
    """adamw for all parameters; muon: Muon for the blocks' matrices and AdamW for the rest, the embeddings at three
    times the learning rate."""
    lr: FiniteNonNegative = 6e-4
    """Peak learning rate."""
    betas: tuple[HalfOpenUnitInterval, HalfOpenUnitInterval] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: FiniteNonNegative = 1e-8
    """AdamW's term against division by zero."""
    weight_decay: FiniteNonNegative = 0.1
    """Decoupled weight decay of matrices; biases and norms have none."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Global gradient norm above which gradients are clipped; 0: no clipping."""


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate schedule: linear warmup to the peak, then the named decay."""

    name: ScheduleName = "cosine"
    """Decay after the warmup; wsd (warmup-stable-decay) stays at the peak until its decay phase."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warmup."""
    decay_ratio: ClosedUnitInterval = 0.2
    """Fraction of all steps, at the end, over which wsd decays linearly."""
    min_lr_ratio: ClosedUnitInterval = 0.1
    """Learning rate at the last step as a fraction of the peak; constant has no decay."""
