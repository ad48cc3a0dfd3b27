"""Backend `fsdp2`: PyTorch's FSDP2, which shards weights, gradients and optimizer state and gathers a block at a time.

It is PyTorch's own also under `accelerate launch`: Accelerate does not reach it on a CPU.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from malmoi.train.backends.base import BackendInputs, BackendSpec
from malmoi.train.backends.torch_backend import TorchBackend
from malmoi.train.distributed.dist_env import HALF_DTYPES


class FullyShardedBackend(TorchBackend):
    """fp32 shards; computes in, and gathers, 16 bits where the run has them."""

    def __init__(self, inputs: BackendInputs) -> None:
        env = inputs.env
        mesh = init_device_mesh(env.device.type, (env.dims.dp_size,))
        policy = MixedPrecisionPolicy(param_dtype=HALF_DTYPES.get(env.precision), reduce_dtype=torch.float32)
        # fully_shard changes the module's class in place.
        self._sharded: Any = inputs.model.to(env.device)
        self.model: nn.Module = self._sharded
        for block in inputs.spec.blocks(self._sharded):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self._sharded, mesh=mesh, mp_policy=policy)
        # Only now are the parameters those that the optimizer must know.
        super().__init__(inputs, self._sharded)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self._sharded.set_requires_gradient_sync(is_last)
        yield

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        self._reshard()
        return super().state_tensors()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self._reshard()
        super().load_state(tensors)

    def _reshard(self) -> None:
        """Free the gathered parameters: after a forward pass without a backward one the outermost module holds full
        ones, which are others than those that the optimizer knows."""
        self._sharded.reshard()


SPEC = BackendSpec(
    build=FullyShardedBackend,
    shards_weights=True,
    # fp32 weights and gradients, all sharded.
    state_bytes=lambda parameters, optimizer_bytes, ranks, half: -(-(8 * parameters + optimizer_bytes) // ranks),
    needs_process_group=True,
)
