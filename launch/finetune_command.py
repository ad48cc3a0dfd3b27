"""`malmoi finetune`."""

from collections.abc import Sequence

from configs.command_line import parse_settings
from configs.errors import BadInput
from configs.schema import FinetuneSettings


def finetune(argv: Sequence[str]) -> int:
    """Fine-tune a model on labelled examples, or go on with it."""
    settings = parse_settings(
        FinetuneSettings,
        argv,
        "malmoi finetune",
        "Fine-tune a model on labelled examples, or go on with it, and export a classifier with its scores.",
        lists=("task.fields",),
    )
    try:
        from train.finetune import finetune as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("sklearn", "scipy"):
            raise
        raise BadInput(f"{error.name} is not installed; install it with `pip install 'malmoi[finetune]'`") from error
    return run(settings)
