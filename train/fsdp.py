"""PyTorch's FSDP2: weights, gradients and moments cut over the ranks, gathered a block at a time."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import GPT2LMHeadModel

from configs.schema import TrainSettings
from train.parallel import HALF_DTYPES, Placement
from train.torch_backend import TorchBackend


class FullyShardedBackend(TorchBackend):
    """Backend `fsdp2`: fp32 shards; computes in, and gathers, half precision where the run has it."""

    def __init__(self, placement: Placement, model: GPT2LMHeadModel, train: TrainSettings) -> None:
        device = placement.accelerator.device
        mesh = init_device_mesh(device.type, (placement.ranks,))
        policy = MixedPrecisionPolicy(param_dtype=HALF_DTYPES.get(placement.precision), reduce_dtype=torch.float32)
        self._sharded = model.to(device)
        self.model: nn.Module = self._sharded
        for block in self._sharded.transformer.h:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self._sharded, mesh=mesh, mp_policy=policy)
        # Only now are the parameters those that the optimiser must know.
        super().__init__(placement, self._sharded, train)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self._sharded.set_requires_gradient_sync(is_last)
        yield

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        self._cut_again()
        return super().tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._cut_again()
        super().load(tensors)

    def _cut_again(self) -> None:
        """After a forward pass without a backward one the outermost module holds whole parameters, which are others
        than those that the optimiser knows."""
        self._sharded.reshard()
