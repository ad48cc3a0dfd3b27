"""What a training step computes, and how the model is evaluated: what the trainer asks of a task."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from malmoi.train.backends import Backend
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.metrics.records import TaskValMetrics, ValMetrics


class EvalResult(Protocol):
    """The result of an evaluation."""

    @property
    def loss(self) -> float:
        """The validation loss; checkpoints are kept and training is stopped early by it."""
        ...

    def record(self, step: int, tokens_seen: int) -> ValMetrics | TaskValMetrics:
        """Return the record for metrics.jsonl and trackers."""
        ...

    def summary(self) -> str:
        """Return one line for the terminal."""
        ...


class Task(Protocol):
    """How samples are read, what their loss is, and how the model is evaluated.

    All of it is a function of sample numbers alone, the same on every rank.
    """

    @property
    def sample_tokens(self) -> int:
        """Tokens in a sample, for counts and speeds; a mean where samples differ."""
        ...

    def num_target_tokens(self, first_sample: int, count: int) -> int:
        """Return what the loss sum of `count` samples from `first_sample` on is divided by."""
        ...

    def read(self, first_sample: int, count: int) -> Any:
        """Return `count` samples from `first_sample` on, for `loss_sum` of the same task."""
        ...

    def largest(self, count: int) -> Any:
        """Return `count` samples of those that take the most memory, to try a micro-batch with."""
        ...

    def loss_sum(self, model: nn.Module, samples: Any, device: torch.device) -> Tensor:
        """Return the summed loss of `samples`, an fp32 scalar with a gradient."""
        ...

    def evaluate(
        self,
        backend: Backend,
        env: DistEnv,
        micro_batch_size: int,
        max_tokens: int | None,
        keep_going: Callable[[], bool],
    ) -> EvalResult | None:
        """Evaluate the model on validation data, up to `max_tokens` of it; every rank must take part.

        Args:
            keep_going: called now and then, on all ranks alike, with the same answer on all; false stops.

        Returns:
            The same on every rank; None where there are no such data or it was stopped.
        """
        ...
