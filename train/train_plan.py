"""What the trainer is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from malmoi.configs.optim import OptimSettings, ScheduleSettings
from malmoi.configs.outputs import CheckpointSettings, EvalSettings, LogSettings
from malmoi.configs.train import RollbackSettings, TrainSettings
from malmoi.train.checkpoint.resume import ResumeConditions, no_data_changes
from malmoi.train.checkpoint.train_state import TrainState
from malmoi.train.run_dir import HYPERPARAMETERS, SettingChange
from malmoi.train.tasks import EvalResult, Task
from malmoi.train.tasks.eval_samples import EvalSampler


@dataclass(frozen=True)
class TrainPlan:
    """What the trainer needs to know, all of it checked."""

    run: Path
    train: TrainSettings
    optim: OptimSettings
    schedule: ScheduleSettings
    rollback: RollbackSettings
    checkpoint: CheckpointSettings
    eval: EvalSettings
    log: LogSettings
    watchdog_timeout: int
    """Seconds; 0: never."""
    config: Mapping[str, bool | int | float | str]
    """All settings by dotted name, for trackers."""
    task: Task
    data_fingerprint: str
    max_steps: int
    micro_batch_size: int
    accumulation: int
    """Micro-batches that a rank computes in one optimizer step."""
    parameters: int
    """Of the model, without padding of the vocabulary."""
    flops_per_token: float
    peak_flops: float
    """FLOP/s of one device."""
    patience: int = 0
    """Evaluations without a lower loss after which training stops early; 0: never."""
    sampler: EvalSampler | None = None
    """Draws a sample at each evaluation; None: there are no such samples."""
    changes: tuple[SettingChange, ...] = ()
    """Of the settings since the run was last started."""
    data_changes: Callable[[str], str] = no_data_changes
    """Returns how the data differ from those of a fingerprint, in words; empty where that is not known."""

    def resume_conditions(self) -> ResumeConditions:
        """Return what a checkpoint must fit."""
        return ResumeConditions(
            max_steps=self.max_steps,
            data_fingerprint=self.data_fingerprint,
            allow_data_change=self.checkpoint.allow_data_change,
            data_changes=self.data_changes,
            hyperparameter_changes=[change.text for change in self.changes if change.name in HYPERPARAMETERS],
        )


@dataclass(frozen=True)
class TrainOutcome:
    """How training ended."""

    state: TrainState
    stopped_by: str | None
    """The signal that ended it early, if one did."""
    evaluation: EvalResult | None
    """On the full validation split, where the run reached its last step and there is one."""
