"""`malmoi finetune`."""

from collections.abc import Sequence

from configs.command_line import parse_settings, without_switch
from configs.errors import BadInput
from configs.finetune_settings import FinetuneSettings
from configs.quick_imports import quick_imports


def finetune(argv: Sequence[str]) -> int:
    """Fine-tune a model on labelled examples, or go on with it; with `--dry_run`, only tell what that would take."""
    is_dry, argv = without_switch(argv, "dry_run")
    about = (
        "Fine-tune a model on labelled examples, or go on with it, and export a classifier with its scores. With "
        "--dry_run: read the examples, take three steps that leave nothing behind, and tell what the run would take in "
        "memory, disk and time."
    )
    settings = parse_settings(FinetuneSettings, argv, "malmoi finetune", about, lists=("task.fields",))
    try:
        with quick_imports():
            from train.finetune import finetune as run
            from train.finetune_dry_run import finetune_dry_run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("sklearn", "scipy"):
            raise
        raise BadInput(f"{error.name} is not installed; install it with `pip install 'malmoi[finetune]'`") from error
    return finetune_dry_run(settings) if is_dry else run(settings)
