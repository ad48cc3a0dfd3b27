"""Backend `fsdp2`: PyTorch's FSDP2, which shards weights, gradients and optimizer state and gathers a block at a time.

It is PyTorch's own also under `accelerate launch`: Accelerate does not reach it on a CPU.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from malmoi.train.backends.base import BackendInputs, BackendSpec
from malmoi.train.backends.torch_backend import TorchBackend
from malmoi.train.distributed.dist_env import HALF_DTYPES, DistEnv


class FullyShardedBackend(TorchBackend):
    """fp32 shards; computes in, and gathers, 16 bits where the run has them."""

    def __init__(self, inputs: BackendInputs) -> None:
        env = inputs.env
        options: dict[str, Any] = {
            "mesh": device_mesh(env),
            "mp_policy": MixedPrecisionPolicy(param_dtype=HALF_DTYPES.get(env.precision), reduce_dtype=torch.float32),
            # On a CPU everything is in the host's memory already.
            "offload_policy": CPUOffloadPolicy() if env.offload and env.device.type != "cpu" else OffloadPolicy(),
        }
        # fully_shard changes the module's class in place.
        self._sharded: Any = inputs.model
        self.model: nn.Module = self._sharded
        for module in (*inputs.spec.blocks(self._sharded), self._sharded):
            # Made, moved and cut one after another, so that no rank ever holds the full model.
            if inputs.deferred is not None:
                inputs.deferred.make(module)
            fully_shard(module, **options)
        # Only now are the parameters those that the optimizer must know.
        super().__init__(inputs, self._sharded)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        # Reduced to shards after each micro-batch: until the last one, full gradients would take the memory that
        # sharding has saved. Between replicas they are reduced once a step.
        self._sharded.set_requires_all_reduce(is_last)
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


def device_mesh(env: DistEnv) -> DeviceMesh:
    """Return the ranks as FSDP2 wants them: in one dimension, or, with replicas, rows of ranks that share a model."""
    dims = env.dims
    if dims.replicas == 1:
        return init_device_mesh(env.device.type, (dims.dp_size,))
    return init_device_mesh(env.device.type, (dims.replicas, dims.shard_size), mesh_dim_names=("replicate", "shard"))


SPEC = BackendSpec(
    build=FullyShardedBackend,
    shards_weights=True,
    # fp32 weights and gradients, all sharded.
    state_bytes=lambda parameters, optimizer_bytes, ranks, half: -(-(8 * parameters + optimizer_bytes) // ranks),
    # What is outside the blocks stays gathered; of the blocks there are the one at hand, the next one, the gradient,
    # and its fp32 copy that is reduced.
    gathered_bytes=lambda block, others, parameters, half: (2 if half else 4) * (others + 3 * block) + 4 * block,
    needs_process_group=True,
    can_offload=True,
    can_replicate=True,
    defers_init=True,
)
