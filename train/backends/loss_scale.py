"""fp16's loss scale: kept as high as the gradients allow."""

from dataclasses import dataclass

INITIAL_SCALE_POWER = 16
INITIAL_SCALE = 2.0**INITIAL_SCALE_POWER
GROWTH, BACKOFF = 2.0, 0.5
GROWTH_INTERVAL = 2000
MINIMUM_SCALE = 1.0


@dataclass(frozen=True)
class LossScaleState:
    """A loss scale between two steps. It moves as torch's GradScaler does by default."""

    scale: float = INITIAL_SCALE
    good_steps: int = 0
    """Steps since the scale last changed, none of which was skipped."""

    def after(self, skipped: bool) -> "LossScaleState":
        """Return the scale after a step, never below the minimum."""
        if skipped:
            return LossScaleState(max(MINIMUM_SCALE, self.scale * BACKOFF), 0)
        if self.good_steps + 1 == GROWTH_INTERVAL:
            return LossScaleState(self.scale * GROWTH, 0)
        return LossScaleState(self.scale, self.good_steps + 1)

    @property
    def is_exhausted(self) -> bool:
        """Whether another overflow cannot lower the scale further."""
        return self.scale <= MINIMUM_SCALE
