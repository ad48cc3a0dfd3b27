"""Whole copies of the model: one process, or DDP."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from configs.schema import TrainSettings
from train.backend import Update
from train.loss_scale import LossScaleState
from train.optim import new_optimizer, set_learning_rate
from train.parallel import HALF_DTYPES, Placement
from train.parameter_tensors import clip_and_step, load_parameters, parameter_tensors


class Replicated:
    """Backends `single` and `ddp`: fp32 weights everywhere, gradients averaged once an update."""

    def __init__(self, placement: Placement, model: GPT2LMHeadModel, train: TrainSettings) -> None:
        self._accelerator = placement.accelerator
        self._dtype = HALF_DTYPES.get(placement.precision)
        self._clip_norm = train.clip_norm
        self._scale = LossScaleState() if placement.precision == "fp16" else None
        self._bare = model.to(placement.accelerator.device)
        self._optimizer = new_optimizer(model, train, placement.accelerator.device)
        self.model: nn.Module = placement.accelerator.prepare_model(model)

    def autocast(self) -> AbstractContextManager[None]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, dtype=self._dtype)

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self._accelerator.no_sync(self.model)

    def backward(self, nats: Tensor, global_tokens: int) -> None:
        # DDP averages over the ranks: the factor makes that the mean over all tokens.
        factor = self._accelerator.num_processes / global_tokens
        scale = self._scale.scale if self._scale else 1.0
        torch.autograd.backward(nats * (factor * scale))

    def update(self, rate: float) -> Update:
        set_learning_rate(self._optimizer, rate)
        update = clip_and_step(self._bare, self._optimizer, self._clip_norm, self._scale)
        if self._scale:
            self._scale = self._scale.after(update.skipped)
        return update

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return parameter_tensors(self._bare, self._optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        load_parameters(self._bare, self._optimizer, tensors)

    def loss_scale(self) -> LossScaleState | None:
        return self._scale

    def set_loss_scale(self, state: LossScaleState) -> None:
        if self._scale is not None:
            self._scale = state

    def close(self) -> None:
        pass
