"""When a loss has gone wrong: not finite too often in a row, or far above its recent course."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.schema import DivergenceSettings


@dataclass(frozen=True)
class DivergenceState:
    """What a watch has seen, for a run that goes on."""

    skipped_in_a_row: int
    recent: tuple[float, ...]
    """The latest losses that were all right, in nats a token, oldest first; none where no spike is looked for."""


def divergence_state(record: Mapping[str, Any]) -> DivergenceState:
    """What `dataclasses.asdict` and JSON have made of one.

    Raises:
        TypeError: it is none.
    """
    return DivergenceState(**{**record, "recent": tuple(record["recent"])})


class DivergenceWatch:
    """Sees every update's loss and whether it was skipped; the same on all ranks, since both are global."""

    def __init__(self, settings: DivergenceSettings) -> None:
        self._settings = settings
        self._skipped_in_a_row = 0
        self._recent: deque[float] = deque(maxlen=settings.spike_window)

    @property
    def wants_losses(self) -> bool:
        """Whether `verdict` looks at losses, which have to be brought from the device for it."""
        return self._settings.spike_deviations > 0

    def verdict(self, loss: float | None, skipped: bool) -> str | None:
        """What is wrong, in words; none while all is well.

        Args:
            loss: nats a token of this update, where `wants_losses`.
        """
        settings = self._settings
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if settings.nonfinite_steps and self._skipped_in_a_row >= settings.nonfinite_steps:
            return f"{self._skipped_in_a_row} updates in a row whose loss or gradient was not finite"
        if loss is None or not math.isfinite(loss):
            return None
        if settings.spike_deviations and len(self._recent) == self._recent.maxlen:
            mean, deviation = statistics.fmean(self._recent), statistics.stdev(self._recent)
            if loss > mean + settings.spike_deviations * deviation:
                return (
                    f"a loss of {loss:.4f}, more than {settings.spike_deviations:g} deviations of {deviation:.4f} "
                    f"above the mean {mean:.4f} of the {len(self._recent)} before"
                )
        self._recent.append(loss)
        return None

    def state(self) -> DivergenceState:
        """What `restore` goes on from."""
        return DivergenceState(self._skipped_in_a_row, tuple(self._recent))

    def restore(self, state: DivergenceState | None) -> None:
        """Go on from another watch's `state`; none: from where nothing was seen."""
        self._skipped_in_a_row = 0 if state is None else state.skipped_in_a_row
        self._recent.clear()
        self._recent.extend(() if state is None else state.recent)

    def after_rollback(self) -> None:
        """Count anew; the course of losses stays, since what left it was not taken into it."""
        self._skipped_in_a_row = 0
