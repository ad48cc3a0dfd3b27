"""What the loop asks of a backend, and the one that its name stands for."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from configs.schema import TrainSettings
from train.loss_scale import LossScaleState
from train.parallel import Placement
from train.transfer import HostNumber


@dataclass(frozen=True)
class Update:
    """One update, the same on every rank, which the device may still be at."""

    norm: HostNumber
    """Global norm of the gradient before clipping; not finite where the update was skipped."""
    is_late: bool
    """Whether the host has not waited for it, and may go on without; after `Backend.load`, gradients that were made
    meanwhile are gone."""


class Backend(Protocol):
    """A model and its optimiser on one rank, whole or a part of them.

    Its tensors have the names `model.PARAMETER` and `MOMENT.PARAMETER` and are whole and in fp32, whatever
    lies on a rank, so that any backend at any world size takes what another gave.
    """

    model: nn.Module
    """What the forward pass calls."""

    def autocast(self) -> AbstractContextManager[None]:
        """Precision of the forward pass."""
        ...

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch; gradients are exchanged in the last one of an update."""
        ...

    def backward(self, nats: Tensor, global_tokens: int) -> None:
        """Add a micro-batch's part, `nats` summed over its valid tokens, to the gradient of the mean over
        `global_tokens`."""
        ...

    def update(self, rate: float) -> Update:
        """Clip, step at this learning rate, and clear the gradients; skipped where the gradient is not finite."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and moments in a fixed order, weights first, each valid until the next; every rank must go through as
        many."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; without moments, only the weights."""
        ...

    def loss_scale(self) -> LossScaleState | None:
        """Where fp16's loss scale stands; none in other precisions."""
        ...

    def set_loss_scale(self, state: LossScaleState) -> None:
        """Go on with a scale from a checkpoint."""
        ...

    def close(self) -> None:
        """Free what the process must not keep until it ends."""
        ...


def new_backend(
    placement: Placement, model: GPT2LMHeadModel, train: TrainSettings, micro_batch: int, accumulation: int
) -> Backend:
    """Put `model` and a new optimiser under the backend that `placement` names."""
    if placement.backend in ("single", "ddp"):
        from train.replicated import Replicated

        return Replicated(placement, model, train)
    if placement.backend == "fsdp2":
        from train.fsdp import FullyShardedBackend

        return FullyShardedBackend(placement, model, train)
    from train.zero import ZeroBackend

    return ZeroBackend(placement, model, train, micro_batch, accumulation)
