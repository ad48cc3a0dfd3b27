"""AdamW and the learning rate as a function of the update's number."""

import math

import torch

from configs.schema import TrainSettings


def adamw(model: torch.nn.Module, settings: TrainSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: matrices decay, biases and norms do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=device.type in ("cuda", "cpu"),
    )


def learning_rate(update: int, updates: int, settings: TrainSettings) -> float:
    """Rate of update number `update` (from 0) of `updates`: a line up to the peak, then the schedule down."""
    if update < settings.warmup_steps:
        return settings.learning_rate * (update + 1) / settings.warmup_steps
    progress = min(1.0, (update - settings.warmup_steps) / max(1, updates - 1 - settings.warmup_steps))
    height = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    share = settings.final_learning_rate + (1 - settings.final_learning_rate) * height[settings.schedule]
    return settings.learning_rate * share
