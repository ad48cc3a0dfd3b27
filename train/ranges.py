"""What the numbers of a training may be."""

import math
from collections.abc import Iterator

from configs.errors import BadInput
from configs.schema import DivergenceSettings, TrainSettings

AT_LEAST_0, AT_LEAST_1 = "choose 0 or more", "choose 1 or more"
SHARE = "choose a share from 0 to 1"
FINITE = "choose a number from 0 that is not infinite"
BELOW_1 = "choose 0 or more, and less than 1"
Check = tuple[str, float, bool, str]
"""A setting's name, its value, whether it can be, and what to choose where it cannot."""


def check_ranges(settings: TrainSettings) -> None:
    """See that each number is one that it can be.

    Raises:
        BadInput: one is not; the first is named.
    """
    for name, value, good, remedy in [*_of_the_loop(settings), *_of_divergence(settings.divergence)]:
        if not good:
            raise BadInput(f"train.{name} {value}: {remedy}")


def _of_the_loop(settings: TrainSettings) -> Iterator[Check]:
    if isinstance(settings.micro_batch, int):
        yield _at_least("micro_batch", settings.micro_batch, 1)
    for name in ("global_batch", "log_every", "evaluate_tokens", "keep_last"):
        yield _at_least(name, getattr(settings, name), 1)
    for name in ("warmup_steps", "evaluate_every", "save_every", "keep_best", "seed"):
        yield _at_least(name, getattr(settings, name), 0)
    for name in ("learning_rate", "weight_decay", "epsilon"):
        value = getattr(settings, name)
        yield name, value, 0 <= value < math.inf, FINITE
    yield "clip_norm", settings.clip_norm, settings.clip_norm >= 0, AT_LEAST_0
    for name in ("beta1", "beta2"):
        value = getattr(settings, name)
        yield name, value, 0 <= value < 1, BELOW_1
    for name in ("decay_share", "final_learning_rate"):
        value = getattr(settings, name)
        yield name, value, 0 <= value <= 1, SHARE


def _of_divergence(settings: DivergenceSettings) -> Iterator[Check]:
    for name in ("nonfinite_steps", "spike_deviations", "rollbacks"):
        yield _at_least(f"divergence.{name}", getattr(settings, name), 0)
    window = settings.spike_window
    yield "divergence.spike_window", window, window >= 2, "choose 2 or more, for a deviation"


def _at_least(name: str, value: float, least: int) -> Check:
    return name, value, value >= least, AT_LEAST_1 if least else AT_LEAST_0
