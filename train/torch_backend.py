"""What one process, DDP and FSDP2 share: a torch optimiser over named parameters, and a loss scale of our own."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from configs.schema import TrainSettings
from train.backend import Update
from train.loss_scale import LossScaleState
from train.optim import new_optimizer, set_learning_rate
from train.parallel import Placement
from train.parameter_tensors import clip_and_step, load_parameters, parameter_tensors


class TorchBackend:
    """Backward, update and state of a model whose gradients are averaged over the ranks."""

    def __init__(self, placement: Placement, parameters_of: GPT2LMHeadModel, train: TrainSettings) -> None:
        self._ranks = placement.ranks
        self._clip_norm = train.clip_norm
        self._scale = LossScaleState() if placement.precision == "fp16" else None
        self._bare = parameters_of
        self._optimizer = new_optimizer(parameters_of, train, placement.accelerator.device)

    def backward(self, nats: Tensor, global_tokens: int) -> None:
        # Gradients are averaged over the ranks: the factor makes that the mean over all tokens.
        scale = self._scale.scale if self._scale else 1.0
        torch.autograd.backward(nats * (self._ranks / global_tokens * scale))

    def update(self, rate: float) -> Update:
        set_learning_rate(self._optimizer, rate)
        update = clip_and_step(self._bare, self._optimizer, self._clip_norm, self._scale)
        if self._scale:
            # The next forward pass needs the scale.
            self._scale = self._scale.after(not math.isfinite(update.norm.value()))
            return replace(update, is_late=False)
        return update

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return parameter_tensors(self._bare, self._optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        load_parameters(self._bare, self._optimizer, tensors)

    def loss_scale(self) -> LossScaleState | None:
        return self._scale

    def set_loss_scale(self, state: LossScaleState) -> None:
        if self._scale is not None:
            self._scale = state

    def close(self) -> None:
        """Nothing outlives the process."""
