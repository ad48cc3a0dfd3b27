"""The optimisers, and the learning rate as a function of the update's number."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from configs.schema import TrainSettings
from train.muon import Muon

MUON_MOMENTUM = 0.95
EMBEDDINGS = ("transformer.wte.weight", "transformer.wpe.weight")
EMBEDDING_RATE = 3.0
"""Learning rate of the embeddings beside Muon, in rates of its matrices: what benchmarks/learning.py found best."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the transformer's blocks, AdamW for embeddings, biases and norms.

    One learning rate serves both, the embeddings' a multiple of it, and both keep their state in this optimiser's
    `state`.
    """

    def __init__(
        self,
        attention: Sequence[Tensor],
        matrices: Sequence[Tensor],
        embeddings: Sequence[Tensor],
        rest: Sequence[Tensor],
        settings: TrainSettings,
        fused: bool,
    ) -> None:
        groups: list[dict[str, Any]] = [{"params": attention, "parts": 3}, {"params": matrices}]
        self.muon = Muon(groups, settings.learning_rate, settings.weight_decay, MUON_MOMENTUM)
        self.adamw = _adamw(rest, settings, fused)
        self.adamw.add_param_group(
            {"params": embeddings, "weight_decay": settings.weight_decay, "rate_factor": EMBEDDING_RATE}
        )
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        # One list of groups and one state: what Accelerate, the loss scaler and a checkpoint see is what steps.
        self.muon.param_groups = self.param_groups[: len(self.muon.param_groups)]
        self.adamw.param_groups = self.param_groups[len(self.muon.param_groups) :]
        self.muon.state = self.adamw.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters; a closure is not supported and must be none."""
        assert closure is None
        self.muon.step()
        self.adamw.step()


def _adamw(parameters: Sequence[Tensor], settings: TrainSettings, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays matrices, and not biases and norms."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon, fused=fused)


def new_optimizer(model: torch.nn.Module, settings: TrainSettings, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that `settings.optimizer` names, over a GPT-2's trainable parameters."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    fused = device.type in ("cuda", "cpu")
    if settings.optimizer == "adamw":
        return _adamw([parameter for _, parameter in named], settings, fused)
    # Query, key and value lie side by side in one parameter.
    attention = [parameter for name, parameter in named if name.endswith(".attn.c_attn.weight")]
    matrices = [
        parameter
        for name, parameter in named
        if ".h." in name and parameter.dim() == 2 and not name.endswith(".attn.c_attn.weight")
    ]
    embeddings = [parameter for name, parameter in named if name in EMBEDDINGS]
    apart = {*attention, *matrices, *embeddings}
    rest = [parameter for _, parameter in named if parameter not in apart]
    return MuonWithAdamW(attention, matrices, embeddings, rest, settings, fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups, of some a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def learning_rate(update: int, updates: int, settings: TrainSettings) -> float:
    """Rate of update number `update` (from 0) of `updates`: a line up to the peak, then the schedule down.

    wsd is the schedule of Hu et al., "MiniCPM" (2024), with a linear decay: until it decays it does not depend on
    `updates`, so a run can be made longer from any checkpoint before.
    """
    if update < settings.warmup_steps:
        return settings.learning_rate * (update + 1) / settings.warmup_steps
    last, falls_from = updates - 1, settings.warmup_steps
    if settings.schedule == "wsd":
        falls_from = max(falls_from, last - round(settings.decay_share * updates))
    progress = min(1.0, max(0, update - falls_from) / max(1, last - falls_from))
    if settings.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        height = 1.0 if settings.schedule == "constant" else 1 - progress
    share = settings.final_learning_rate + (1 - settings.final_learning_rate) * height
    return settings.learning_rate * share
