"""PyTorch's FSDP2: weights, gradients and moments cut over the ranks, gathered a block at a time."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import GPT2LMHeadModel

from configs.schema import TrainSettings
from train.backend import Update
from train.loss_scale import LossScaleState
from train.optim import new_optimizer, set_learning_rate
from train.parallel import HALF_DTYPES, Placement
from train.parameter_tensors import clip_and_step, load_parameters, parameter_tensors


class FullyShardedBackend:
    """Backend `fsdp2`: fp32 shards; computes in, and gathers, half precision where the run has it."""

    def __init__(self, placement: Placement, model: GPT2LMHeadModel, train: TrainSettings) -> None:
        device = placement.accelerator.device
        self._ranks = placement.ranks
        self._clip_norm = train.clip_norm
        self._scale = LossScaleState() if placement.precision == "fp16" else None
        mesh = init_device_mesh(device.type, (placement.ranks,))
        dtype = HALF_DTYPES.get(placement.precision)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        self._model = model.to(device)
        for block in self._model.transformer.h:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self._model, mesh=mesh, mp_policy=policy)
        self._optimizer = new_optimizer(self._model, train, device)
        self.model: nn.Module = self._model

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self._model.set_requires_gradient_sync(is_last)
        yield

    def backward(self, nats: Tensor, global_tokens: int) -> None:
        # Gradients are averaged over the ranks: the factor makes that the mean over all tokens.
        scale = self._scale.scale if self._scale else 1.0
        torch.autograd.backward(nats * (self._ranks / global_tokens * scale))

    def update(self, rate: float) -> Update:
        set_learning_rate(self._optimizer, rate)
        update = clip_and_step(self._model, self._optimizer, self._clip_norm, self._scale)
        if self._scale:
            self._scale = self._scale.after(update.skipped)
        return update

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        self._cut_again()
        return parameter_tensors(self._model, self._optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._cut_again()
        load_parameters(self._model, self._optimizer, tensors)

    def _cut_again(self) -> None:
        """After a forward pass without a backward one the outermost module holds whole parameters, which are others
        than those that the optimiser knows."""
        self._model.reshard()

    def loss_scale(self) -> LossScaleState | None:
        return self._scale

    def set_loss_scale(self, state: LossScaleState) -> None:
        if self._scale is not None:
            self._scale = state

    def close(self) -> None:
        pass
