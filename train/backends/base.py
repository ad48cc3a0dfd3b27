"""What the trainer asks of a backend, and what a backend's registry entry tells."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import Precision
from malmoi.train.backends.loss_scale import LossScaleState
from malmoi.train.distributed.async_copy import AsyncScalar
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.process_groups import DeviceType
from malmoi.train.models import ModelSpec
from malmoi.train.models.deferred_init import DeferredInit


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank, which the device may still be computing."""

    grad_norm: AsyncScalar
    """Global norm before clipping; not finite where the step was skipped."""
    is_pending: bool
    """Whether the host may continue without the norm; `Backend.load_state` drops gradients made meanwhile."""


class Backend(Protocol):
    """A model and its optimizer on one rank, replicated or sharded.

    Its state has the names `model.PARAMETER` and `KEY.PARAMETER` for an optimizer's keys, in full fp32 tensors whatever
    a rank holds, so that any backend at any number of ranks takes what another gave.
    """

    model: nn.Module
    """What the forward pass calls."""

    def autocast(self) -> AbstractContextManager[None]:
        """Set the precision of the forward pass."""
        ...

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        """Enclose forward and backward of a micro-batch; gradients are reduced in the last one of a step."""
        ...

    def backward(self, loss_sum: Tensor, num_target_tokens: int) -> None:
        """Add a micro-batch's part to the gradient of the mean loss.

        Args:
            loss_sum: over the micro-batch's targets.
            num_target_tokens: of the whole global batch, over all ranks.
        """
        ...

    def step(self, lr: float) -> StepResult:
        """Clip, step at this learning rate, and clear the gradients; skip the step where a gradient is not finite."""
        ...

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield weights and optimizer state in a fixed order, weights first, each valid until the next; every rank must
        go through all."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_tensors` gave; without optimizer state, only the weights.

        Raises:
            UserError: there is optimizer state that this optimizer does not have.
        """
        ...

    def loss_scale(self) -> LossScaleState | None:
        """Return fp16's loss scale, or None in other precisions."""
        ...

    def set_loss_scale(self, state: LossScaleState) -> None:
        """Continue with a loss scale from a checkpoint."""
        ...

    def close(self) -> None:
        """Free what the process must not keep until it ends."""
        ...


@dataclass(frozen=True)
class BackendInputs:
    """What a backend is built from."""

    env: DistEnv
    model: nn.Module
    spec: ModelSpec
    optim: OptimSettings
    micro_batch_size: int
    accumulation: int
    deferred: DeferredInit | None = None
    """What makes the weights of `model`; None: they are made."""


@dataclass(frozen=True)
class AcceleratorInputs:
    """What a backend's `Accelerator` is made from."""

    device_type: DeviceType
    precision: Precision
    max_grad_norm: float
    offload: bool
    timeout: timedelta
    """How long a collective waits."""


@dataclass(frozen=True)
class BackendSpec:
    """A way to lay a model and its optimizer over the ranks."""

    build: Callable[[BackendInputs], Backend]
    shards_weights: bool
    """Whether no rank holds the full model."""
    state_bytes: Callable[[int, int, int, bool], int]
    """Bytes of weights, gradients and optimizer on one device, for (parameters, bytes of the optimizer's state, ranks,
    whether it computes in 16 bits)."""
    gathered_bytes: Callable[[int, int, int, bool], int] = lambda block, others, parameters, half: 0
    """Bytes that a device holds besides while it computes, for (parameters of a block, those outside the blocks, all
    of them, whether it computes in 16 bits)."""
    new_accelerator: Callable[[AcceleratorInputs], Accelerator] | None = None
    """None: Accelerate's own choice of DDP or one process."""
    needs_process_group: bool = False
    """Whether one rank too needs a process group."""
    splits_matrices: bool = False
    """Whether the optimizer steps flat pieces, which have parts of matrices."""
    can_offload: bool = False
    """Whether it can keep state in host memory."""
    can_replicate: bool = False
    """Whether it can shard the model within groups of ranks, and keep a copy a group."""
    defers_init: bool = False
    """Whether it takes a model whose weights are not made yet, and makes its shard of them."""
    uses_deepspeed: bool = False
