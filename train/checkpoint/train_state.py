"""Where a run is: everything that training needs to continue, besides weights and optimizer state."""

from dataclasses import dataclass
from typing import Any

from malmoi.checksums import FileRecord
from malmoi.train.backends.loss_scale import LossScaleState


@dataclass(frozen=True)
class LossSpikeState:
    """What the loss spike detector has seen."""

    nonfinite_in_a_row: int
    recent_losses: tuple[float, ...]
    """The latest normal losses, in nats a token, oldest first; empty where spikes are not looked for."""


@dataclass(frozen=True)
class TrainState:
    """Counters and small states of a run after a step."""

    step: int
    """Optimizer steps tried, skipped ones included."""
    samples: int
    """Samples consumed, those that a rollback skipped included."""
    skipped_steps: int
    """Steps whose gradient was not finite."""
    rollbacks: int
    """Times that the run returned to a checkpoint because its loss or gradient diverged."""
    data_fingerprint: str
    loss_scale: LossScaleState | None
    """fp16's loss scale; None in other precisions."""
    val_loss: float | None
    """Validation loss at this very step, nats a token; None where it was not evaluated."""
    loss_spike: LossSpikeState | None = None
    logs: tuple[FileRecord, ...] = ()
    """`metrics.jsonl` and `samples.jsonl` as they were at this step: they only grow, so this much of each stays."""


def train_state_from_json(record: dict[str, Any]) -> TrainState:
    """Return what `dataclasses.asdict` and JSON have made of a state.

    Raises:
        TypeError: a field is missing or unknown.
        KeyError: a field is missing.
    """
    scale, spike = record["loss_scale"], record["loss_spike"]
    parts = {
        "loss_scale": None if scale is None else LossScaleState(**scale),
        "loss_spike": None
        if spike is None
        else LossSpikeState(**{**spike, "recent_losses": tuple(spike["recent_losses"])}),
        "logs": tuple(FileRecord(**log) for log in record.get("logs", ())),
    }
    return TrainState(**{**record, **parts})
