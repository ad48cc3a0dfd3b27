"""What the loop is given, and what it gives back."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from configs.schema import TrainSettings
from train.checkpoint import Progress
from train.look_sampler import LookSampler
from train.loss_scale import LossScaleState
from train.run_folder import SettingChange
from train.task import Look, Task
from train.transfer import HostNumber


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know, all of it checked."""

    run: Path
    train: TrainSettings
    micro_batch: int
    """Samples a rank computes at once."""
    accumulation: int
    """Micro-batches a rank computes in one update."""
    task: Task
    data_fingerprint: str
    steps: int
    flops_per_token: float
    peak_flops: float
    """Of one device."""
    hang_seconds: int
    patience: int = 0
    """Looks at held-out data without a lower loss after which training ends; 0: never before the last step."""
    sampler: LookSampler | None = None
    """Draws a sample at each look at held-out text; none: there are no such samples."""
    changes: tuple[SettingChange, ...] = ()
    """Of the settings since the run was last started."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    progress: Progress
    stopped_by: str | None
    """The signal that ended it early, if one did."""
    look: Look | None
    """At the whole held-out part, where the run came to its last step and there is one."""


@dataclass(frozen=True)
class LoggedUpdate:
    """What is known of one update."""

    nats: Tensor
    """Summed over this rank's targets, on the device."""
    targets: int
    """Of all ranks."""
    rate: float
    norm: HostNumber
    """Global norm of the gradient before clipping; not finite where the update was skipped."""
    loss_scale: LossScaleState | None
    """The fp16 scale that the update was tried at; none in other precisions."""
