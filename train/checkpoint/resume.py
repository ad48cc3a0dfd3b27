"""Which checkpoint a run resumes from: rank 0 selects it, the ranks agree, and one of another run is refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from malmoi.errors import UserError
from malmoi.train.checkpoint.format import Checkpoint, read_checkpoint
from malmoi.train.checkpoint.storage import Storage, checkpoint_name, checkpoint_step
from malmoi.train.distributed.dist_env import DistEnv

Selection = Callable[[Storage], tuple[Checkpoint | None, list[str]]]
"""From all checkpoints to one of them or None, and what is wrong with those that were skipped."""


@dataclass(frozen=True)
class ResumeConditions:
    """What a checkpoint must fit."""

    max_steps: int
    data_fingerprint: str
    allow_data_change: bool
    data_changes: Callable[[str], str]
    """Returns how the data differ from those of a fingerprint, in words; empty where that is not known."""
    hyperparameter_changes: Sequence[str]
    """Settings that decide the weights and were changed since the run was last started, in words."""


def no_data_changes(before: str) -> str:
    """Return how data differ from those of a fingerprint where nothing tells: nothing."""
    return ""


def select_checkpoint(
    storage: Storage, select: Selection, env: DistEnv, report: Callable[[str], None]
) -> Checkpoint | None:
    """Return the checkpoint that rank 0 selects, which reads through all its files; every rank must call this.

    Args:
        report: called with what is wrong with those that were skipped.

    Raises:
        UserError: another rank does not see it, or its folder is named after another step.
    """
    found: Checkpoint | None = None
    if env.is_main:
        found, errors = select(storage)
        for error in errors:
            report(f"skipped a damaged checkpoint: {error}")
    own = (0, 0) if found is None else (found.state.step, checkpoint_step(found.name) or 0)
    step, named_step = env.accelerator.reduce(torch.tensor(own, device=env.device), "sum").tolist()
    if step == 0:
        return None
    name = checkpoint_name(step)
    if named_step != step:
        raise UserError(
            f"{storage.place(checkpoint_name(named_step))}: holds step {step}, so the folder was renamed or copied; "
            f"name it {name} again, or move it away"
        )
    if name not in storage.names():
        raise UserError(
            f"{storage.place(name)}: rank 0 resumes from here and rank {env.dims.dp_rank} does not see it; put the run "
            "folder on a disk that all nodes share"
        )
    return found or read_checkpoint(storage, name)


def check_resumable(checkpoint: Checkpoint, place: str, conditions: ResumeConditions) -> None:
    """Check that a run can resume from `checkpoint`.

    Raises:
        UserError: it is beyond the last step, or at it though settings were changed that the weights depend on; or it
            was trained on other data, which was not allowed.
    """
    step, changes = checkpoint.state.step, conditions.hyperparameter_changes
    if step == conditions.max_steps and changes:
        raise UserError(
            f"{place}: all {step} steps are done, so this would train nothing: {'; '.join(changes)}; take it back, "
            "choose another --run, or raise train.max_steps"
        )
    if step > conditions.max_steps:
        raise UserError(
            f"{place}: is beyond the {conditions.max_steps} steps that the settings give; raise train.max_steps, or "
            "choose another --run"
        )
    before, now = checkpoint.state.data_fingerprint, conditions.data_fingerprint
    if before != now and not conditions.allow_data_change:
        changes_of_data = conditions.data_changes(before)
        raise UserError(
            f"{place}: trained on shards {before[:12]}, the corpus and settings now give {now[:12]}"
            f"{f' ({changes_of_data})' if changes_of_data else ''}; restore them, "
            "choose another --run, or resume anyway with --checkpoint.allow_data_change true"
        )
