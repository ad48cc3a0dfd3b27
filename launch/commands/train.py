"""`malmoi train` and `malmoi finetune`."""

from collections.abc import Sequence

from malmoi.configs.finetune import TASK_LISTS, FinetuneSettings
from malmoi.configs.parser import errors_name_lines, without_switch
from malmoi.configs.run import RunSettings
from malmoi.launch.commands.options import optional_packages, parse_with_plugins
from malmoi.lazy_imports import fast_imports

DRY_RUN = "take three steps that write no checkpoint, and show what the run would need in memory, disk space and time."


def train(argv: Sequence[str]) -> int:
    """Prepare the data that is missing, then train or resume; with `--dry_run`, only estimate what that needs."""
    is_dry, argv = without_switch(argv, "dry_run")
    about = f"Train a model from text, or resume its run. With --dry_run: prepare the data, {DRY_RUN}"
    settings = parse_with_plugins(RunSettings, argv, "malmoi train", about)
    if is_dry:
        with fast_imports():
            from malmoi.train.dry_run import dry_run

        begin = dry_run
    else:
        from malmoi.train.pretrain import pretrain

        begin = pretrain
    with errors_name_lines(RunSettings, argv):
        return begin(settings)


def finetune(argv: Sequence[str]) -> int:
    """Fine-tune a model on labeled examples, or resume; with `--dry_run`, only estimate what that needs."""
    is_dry, argv = without_switch(argv, "dry_run")
    about = (
        "Fine-tune a model on labeled examples, or resume its run, and export a classifier with its scores. With "
        f"--dry_run: read the examples, {DRY_RUN}"
    )
    settings = parse_with_plugins(FinetuneSettings, argv, "malmoi finetune", about, lists=TASK_LISTS)
    with optional_packages("finetune", "sklearn", "scipy"), fast_imports():
        from malmoi.train.dry_run import finetune_dry_run
        from malmoi.train.finetune import finetune as run
    with errors_name_lines(FinetuneSettings, argv, lists=TASK_LISTS):
        return finetune_dry_run(settings) if is_dry else run(settings)
