"""Which checkpoint a run goes on from: rank 0 chooses, the ranks agree, and one of another run is refused."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from configs.errors import BadInput
from train.checkpoint import Checkpoint, checkpoint_folder, read_checkpoint
from train.plan import Plan

Choice = Callable[[Path], tuple[Checkpoint | None, list[str]]]
"""From the folder of all checkpoints: one of them or none, and what is wrong with those that were passed over."""
LEARNT_BY = frozenset(
    f"train.{name}"
    for name in (
        *("global_batch", "learning_rate", "schedule", "decay_share", "final_learning_rate", "warmup_steps"),
        *("warmup_share", "weight_decay", "beta1", "beta2", "epsilon", "clip_norm"),
    )
)
"""Settings that may change while a run is under way, and that its weights come from."""


def agreed_checkpoint(
    checkpoints: Path, choose: Choice, accelerator: Accelerator, tell: Callable[[str], None]
) -> Checkpoint | None:
    """The one that rank 0 chooses, which reads through all of its files; the others take its word. Every rank must ask.

    Args:
        tell: told what is wrong with those that are passed over.

    Raises:
        BadInput: another rank does not see it.
    """
    found: Checkpoint | None = None
    if accelerator.is_main_process:
        found, faults = choose(checkpoints)
        for fault in faults:
            tell(f"passed over a damaged checkpoint: {fault}")
    own = 0 if found is None else found.progress.step
    step = int(accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum"))
    if step == 0:
        return None
    folder = checkpoint_folder(checkpoints, step)
    if not folder.is_dir():
        raise BadInput(
            f"{folder}: rank 0 goes on from here and rank {accelerator.process_index} does not see it; "
            "put the run folder on a disk that all nodes share"
        )
    return read_checkpoint(folder)


def check_goes_on(checkpoint: Checkpoint, plan: Plan) -> None:
    """See that `plan` goes on from `checkpoint`.

    Raises:
        BadInput: it is beyond the last step, or at it though settings have changed that its weights came from; or it
            trained on other data, which was not accepted.
    """
    idle = [change.text for change in plan.changes if change.name in LEARNT_BY]
    if checkpoint.progress.step == plan.steps and idle:
        raise BadInput(
            f"{checkpoint.folder}: all {plan.steps} steps are done, so this would train nothing: {'; '.join(idle)}; "
            "take it back, choose another --run, or raise train.steps"
        )
    if checkpoint.progress.step > plan.steps:
        raise BadInput(
            f"{checkpoint.folder}: is beyond the {plan.steps} steps that the settings now give; raise "
            "train.steps, or choose another --run"
        )
    before, now = checkpoint.progress.data_fingerprint, plan.data_fingerprint
    if before != now and not plan.train.accept_changed_data:
        raise BadInput(
            f"{checkpoint.folder}: trained on shards {before[:12]}, the corpus and settings now give {now[:12]}; "
            "restore them, choose another --run, or go on all the same with --train.accept_changed_data true"
        )
