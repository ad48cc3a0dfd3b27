"""Whole copies of the model: one process, or DDP."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import GPT2LMHeadModel

from configs.schema import TrainSettings
from train.parallel import HALF_DTYPES, Placement
from train.torch_backend import TorchBackend


class Replicated(TorchBackend):
    """Backends `single` and `ddp`: fp32 weights everywhere, gradients averaged once an update."""

    def __init__(self, placement: Placement, model: GPT2LMHeadModel, train: TrainSettings) -> None:
        super().__init__(placement, model.to(placement.accelerator.device), train)
        self._accelerator = placement.accelerator
        self._dtype = HALF_DTYPES.get(placement.precision)
        self.model: nn.Module = placement.accelerator.prepare_model(model)

    def autocast(self) -> AbstractContextManager[None]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, dtype=self._dtype)

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self._accelerator.no_sync(self.model)
