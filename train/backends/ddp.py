"""Backends `single` and `ddp`: a full copy of the model on every rank."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from malmoi.train.backends.base import BackendInputs, BackendSpec
from malmoi.train.backends.torch_backend import TorchBackend
from malmoi.train.distributed.dist_env import HALF_DTYPES


class ReplicatedBackend(TorchBackend):
    """fp32 weights on every rank, gradients averaged once a step."""

    def __init__(self, inputs: BackendInputs) -> None:
        super().__init__(inputs, inputs.model.to(inputs.env.device))
        self._accelerator = inputs.env.accelerator
        self._dtype = HALF_DTYPES.get(inputs.env.precision)
        self.model: nn.Module = self._accelerator.prepare_model(inputs.model)

    def autocast(self) -> AbstractContextManager[None]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, dtype=self._dtype)

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self._accelerator.no_sync(self.model)


SPEC = BackendSpec(
    build=ReplicatedBackend,
    shards_weights=False,
    # fp32 weights and gradients.
    state_bytes=lambda parameters, optimizer_bytes, ranks, half: 8 * parameters + optimizer_bytes,
    # A gradient before it is added, of up to a third of a block, in 16 bits and in fp32; and autocast's 16-bit copies
    # of the weights, which live until the backward pass has ended.
    gathered_bytes=lambda block, others, parameters, half: 2 * block + (2 * parameters if half else 0),
)
