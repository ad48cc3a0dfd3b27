"""Divergence: a loss that is not finite too often in a row, or far above its recent course."""

import math
import statistics
from collections import deque

from malmoi.configs.train import RollbackSettings
from malmoi.train.checkpoint.train_state import LossSpikeState


class LossSpikeDetector:
    """Sees every step's loss and whether it was skipped; the same on all ranks, since both are global."""

    def __init__(self, settings: RollbackSettings) -> None:
        self._settings = settings
        self._nonfinite_in_a_row = 0
        self._recent: deque[float] = deque(maxlen=settings.spike_window)

    @property
    def needs_losses(self) -> bool:
        """Whether `problem` needs losses, which have to be copied from the device for it."""
        return self._settings.spike_zscore > 0

    def problem(self, loss: float | None, skipped: bool) -> str | None:
        """Return what is wrong with a step, in words, or None.

        Args:
            loss: nats a token, where `needs_losses`.
        """
        settings = self._settings
        self._nonfinite_in_a_row = self._nonfinite_in_a_row + 1 if skipped else 0
        if settings.max_nonfinite_steps and self._nonfinite_in_a_row >= settings.max_nonfinite_steps:
            return f"{self._nonfinite_in_a_row} steps in a row whose loss or gradient was not finite"
        if loss is None or not math.isfinite(loss):
            return None
        if settings.spike_zscore and len(self._recent) == self._recent.maxlen:
            mean, deviation = statistics.fmean(self._recent), statistics.stdev(self._recent)
            if loss > mean + settings.spike_zscore * deviation:
                return (
                    f"a loss of {loss:.4f}, more than {settings.spike_zscore:g} standard deviations of {deviation:.4f} "
                    f"above the mean {mean:.4f} of the {len(self._recent)} before"
                )
        self._recent.append(loss)
        return None

    def state(self) -> LossSpikeState:
        """Return what `load_state` continues from."""
        return LossSpikeState(self._nonfinite_in_a_row, tuple(self._recent))

    def load_state(self, state: LossSpikeState | None) -> None:
        """Continue from another detector's `state`; None: from nothing."""
        self._nonfinite_in_a_row = 0 if state is None else state.nonfinite_in_a_row
        self._recent.clear()
        self._recent.extend(() if state is None else state.recent_losses)

    def after_rollback(self) -> None:
        """Count non-finite steps anew; the recent losses stay, since the spike is not among them."""
        self._nonfinite_in_a_row = 0
