"""The learning rate as a pure function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from malmoi.configs.optim import OptimSettings, ScheduleSettings
from malmoi.registry import Registry, registry_entry


@dataclass(frozen=True)
class ScheduleProgress:
    """A step after the warmup, of a run's steps."""

    step: int
    """From 0."""
    max_steps: int
    warmup_steps: int

    def since(self, first: int) -> float:
        """The fraction done of the steps from `first` to the last one, 0 to 1."""
        last = self.max_steps - 1
        return min(1.0, max(0, self.step - first) / max(1, last - first))


Schedule = Callable[[ScheduleProgress, ScheduleSettings], float]
"""From a step after the warmup to what is left of the decay: 1 at the peak, 0 at the minimum."""


def cosine(progress: ScheduleProgress, settings: ScheduleSettings) -> float:
    """Half a cosine from the warmup to the last step."""
    return 0.5 * (1 + math.cos(math.pi * progress.since(progress.warmup_steps)))


def linear(progress: ScheduleProgress, settings: ScheduleSettings) -> float:
    """A line from the warmup to the last step."""
    return 1 - progress.since(progress.warmup_steps)


def constant(progress: ScheduleProgress, settings: ScheduleSettings) -> float:
    """No decay."""
    return 1.0


def wsd(progress: ScheduleProgress, settings: ScheduleSettings) -> float:
    """Warmup-stable-decay (Hu et al., "MiniCPM", 2024), with a linear decay over the last `decay_ratio` of all steps.

    Until it decays it does not depend on the number of steps, so a run can be extended from any checkpoint before.
    """
    decay_steps = round(settings.decay_ratio * progress.max_steps)
    return 1 - progress.since(max(progress.warmup_steps, progress.max_steps - 1 - decay_steps))


SCHEDULES: Registry[Schedule] = Registry({"cosine": cosine, "linear": linear, "wsd": wsd, "constant": constant})


def learning_rate(step: int, max_steps: int, optim: OptimSettings, schedule: ScheduleSettings) -> float:
    """Return the learning rate of step number `step`, from 0, of `max_steps`.

    Raises:
        UserError: there is no schedule of that name.
    """
    if step < schedule.warmup_steps:
        return optim.lr * (step + 1) / schedule.warmup_steps
    decay = registry_entry(SCHEDULES, "schedule.name", schedule.name)
    left = decay(ScheduleProgress(step, max_steps, schedule.warmup_steps), schedule)
    return optim.lr * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * left)


def set_learning_rate(optimizer: object, lr: float) -> None:
    """Set the learning rate of all groups, times a group's `lr_factor`.

    Args:
        optimizer: a torch optimizer, or DeepSpeed's wrapper of one.
    """
    for group in optimizer.param_groups:  # type: ignore[attr-defined]
        group["lr"] = lr * group.get("lr_factor", 1.0)
