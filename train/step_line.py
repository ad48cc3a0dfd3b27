"""The line of metrics of a logged step, from what the loop saw since the one before."""

from collections.abc import Sequence

from train.checkpoint import Progress
from train.interval import TimeShares
from train.metrics import StepMetrics
from train.plan import LoggedUpdate, Plan


def step_line(
    plan: Plan,
    progress: Progress,
    update: LoggedUpdate,
    loss: float,
    times: TimeShares,
    seconds_to_exchange: Sequence[float],
    memory: float,
) -> StepMetrics:
    """What is logged of `update`, the last of the steps that took `times`.

    Args:
        loss: nats a token, over all ranks.
        seconds_to_exchange: by rank, until it was ready to exchange gradients, summed over the steps.
        memory: peak in MiB.
    """
    training_seconds = times.seconds * (1 - times.saving - times.evaluating)
    speed = times.steps * plan.train.global_batch * plan.task.sample_tokens / training_seconds
    mean = sum(seconds_to_exchange) / len(seconds_to_exchange)
    return StepMetrics(
        step=progress.step,
        tokens=progress.samples * plan.task.sample_tokens,
        loss=loss,
        lr=update.rate,
        grad_norm=update.norm.value(),
        tokens_per_second=speed,
        mfu=speed * plan.flops_per_token / (plan.peak_flops * len(seconds_to_exchange)),
        data_wait=times.waiting_for_data,
        saving=times.saving,
        evaluating=times.evaluating,
        memory=memory,
        skipped_steps=progress.skipped_steps,
        slowest_rank=max(range(len(seconds_to_exchange)), key=seconds_to_exchange.__getitem__),
        slowest_lag=max(seconds_to_exchange) / max(1e-9, mean) - 1,
    )


def tracked(line: StepMetrics) -> dict[str, float]:
    """The figures of a line that go to the trackers, by name."""
    names = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu")
    return {name: getattr(line, name) for name in names}
