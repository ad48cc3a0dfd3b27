"""One optimizer step as the trainer sees it, also before the host knows its gradient norm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from malmoi.train.backends.loss_scale import LossScaleState
from malmoi.train.checkpoint.train_state import TrainState
from malmoi.train.distributed.async_copy import AsyncScalar
from malmoi.train.metrics.records import StepMetrics
from malmoi.train.metrics.timers import TimeFractions
from malmoi.train.train_plan import TrainPlan


@dataclass(frozen=True)
class TrainStep:
    """What is known of one optimizer step."""

    loss_sum: Tensor
    """Over this rank's targets, on the device."""
    num_target_tokens: int
    """Of all ranks."""
    lr: float
    grad_norm: AsyncScalar
    """Global norm before clipping; not finite where the step was skipped."""
    loss_scale: LossScaleState | None
    """The fp16 loss scale that the step was tried at; None in other precisions."""

    def was_skipped(self) -> bool:
        """Wait for the gradient norm, and return whether it was not finite."""
        return not math.isfinite(self.grad_norm.value())


class PendingStep:
    """Holds the newest step until the trainer has checked it.

    The gradient norm reaches the host late: the trainer asks for it when the device has the next gradients to compute,
    so that neither waits for the other. Before anything is logged, evaluated or saved, the step must be checked.
    """

    def __init__(self) -> None:
        self._step: TrainStep | None = None

    def put(self, step: TrainStep) -> None:
        """Hold `step`, which has not been checked."""
        self._step = step

    def take(self) -> TrainStep | None:
        """Return the step that is held, if any, and hold none."""
        step, self._step = self._step, None
        return step


def step_metrics(
    plan: TrainPlan,
    state: TrainState,
    step: TrainStep,
    loss: float,
    times: TimeFractions,
    seconds_to_all_reduce: Sequence[float],
    peak_mib: float,
) -> StepMetrics:
    """Return the record of `step`, the last of the steps that took `times`.

    Args:
        loss: nats a token, over all ranks.
        seconds_to_all_reduce: by rank, until it was ready to reduce gradients, summed over the steps.
        peak_mib: peak memory of rank 0.
    """
    training_seconds = times.seconds * (1 - times.checkpoint - times.evaluation)
    speed = times.steps * plan.train.global_batch_size * plan.task.sample_tokens / training_seconds
    ranks = len(seconds_to_all_reduce)
    mean = sum(seconds_to_all_reduce) / ranks
    return StepMetrics(
        step=state.step,
        tokens_seen=state.samples * plan.task.sample_tokens,
        loss=loss,
        lr=step.lr,
        grad_norm=step.grad_norm.value(),
        skipped_steps=state.skipped_steps,
        tokens_per_sec=speed,
        mfu=speed * plan.flops_per_token / (plan.peak_flops * ranks),
        data_wait_frac=times.data_wait,
        checkpoint_frac=times.checkpoint,
        eval_frac=times.evaluation,
        slowest_rank=max(range(ranks), key=seconds_to_all_reduce.__getitem__),
        slowest_rank_lag=max(seconds_to_all_reduce) / max(1e-9, mean) - 1,
        peak_mib=peak_mib,
    )
