"""Pre-training: what is missing is built, then the model is trained, exported and asked for samples.

torch takes seconds to import: a run that is finished, or refused, does not wait for it.
"""

from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from malmoi.checked_json import DamagedFileError
from malmoi.configs.model import ArchitectureName, check_heads
from malmoi.configs.optim import OptimizerName, ScheduleName
from malmoi.configs.outputs import LogSettings
from malmoi.configs.parser import check_settings
from malmoi.configs.run import RunSettings, TaskName
from malmoi.configs.train import check_attention
from malmoi.errors import EXIT_DONE, EXIT_STOPPED, UserError
from malmoi.lazy_imports import fast_imports
from malmoi.plugins import load_plugins
from malmoi.ranks import is_main_rank
from malmoi.train.checkpoint.storage import open_storage
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.distributed.rendezvous import met_ranks
from malmoi.train.run_dir import MODEL_FOLDER, RunResult, finished_result, prepare_run, settings_as_json


def pretrain(settings: RunSettings) -> int:
    """Do what is left of the run of `settings`, and return the exit code.

    Raises:
        UserError: settings, text or run folder are not usable.
        RunFailed: training diverged, a stopped run could not be saved, or a rank did not come.
    """
    console = Console(stderr=True, quiet=not is_main_rank(), highlight=False, soft_wrap=True)
    folder = Path(settings.run)
    try:
        finished = finished_result(folder)
    except DamagedFileError as error:
        console.print(str(error).partition(";")[0] + "; evaluated and exported anew", markup=False)
        finished = None
    if finished is not None and finished.settings == settings_as_json(settings):
        console.print(
            f"{folder} is finished already: to train again, choose another --run or delete it; to continue, raise "
            "train.max_steps",
            markup=False,
        )
        print_result(folder, finished, console)
        return EXIT_DONE
    # Before text is prepared, which may take hours.
    check_run(settings)
    with met_ranks(read_launch_env(), f"started {settings.run}"):
        prepared = prepare_run(settings)
        with fast_imports():
            from malmoi.train.pretrain_run import run_prepared

        if not run_prepared(settings, prepared, console):
            return EXIT_STOPPED
    result = finished_result(folder)
    if result is not None:
        print_result(folder, result, console)
    return EXIT_DONE


def check_run(settings: RunSettings) -> None:
    """Check what can be checked of a run before its text is prepared.

    Raises:
        UserError: a setting is out of range, names something unknown, or does not fit the launcher's ranks.
    """
    load_plugins(settings.plugins)
    check_settings(settings)
    check_heads(settings.model)
    check_attention(settings.train, settings.train.precision, settings.data.document_mask)
    if settings.generate.max_new_tokens >= settings.model.block_size and settings.generate.max_length is None:
        raise UserError(
            f"generate.max_new_tokens {settings.generate.max_new_tokens}: with a prompt they do not fit the model's "
            f"context, model.block_size {settings.model.block_size}; lower it"
        )
    if settings.checkpoint.dir is not None:
        open_storage(settings.checkpoint.dir)
    launch = read_launch_env()
    if isinstance(settings.train.micro_batch_size, int):
        launch.dims.accumulation_steps(settings.train.global_batch_size, settings.train.micro_batch_size)
    backend = launch.backend or settings.parallel.backend
    names = (
        (settings.model.architecture, ArchitectureName),
        (settings.optim.name, OptimizerName),
        (settings.schedule.name, ScheduleName),
        (settings.objective, TaskName),
    )
    if (
        settings.parallel.replicas > 1
        or backend not in ("auto", "single", "ddp")
        or not all(_is_built_in(name, kind) for name, kind in names)
    ):
        with fast_imports():
            from malmoi.train.builder import check_names

        check_names(settings, backend)
    if settings.log != LogSettings(every=settings.log.every, profile_steps=settings.log.profile_steps):
        with fast_imports():
            from malmoi.train.metrics.trackers import require_trackers

        require_trackers(settings.log.trackers, settings.log.tracker_args)


def _is_built_in(name: str, kind: Any) -> bool:
    """Return whether `name` is in the literal of a registry's names."""
    return name in get_args(get_args(kind)[0])


def print_result(folder: Path, result: RunResult, console: Console) -> None:
    """Show samples, validation figures and paths."""
    for number, sample in enumerate(result.samples, 1):
        console.print(f"\n[{number}] {sample}", markup=False, soft_wrap=True)
    console.print()
    if result.bits_per_byte is not None:
        console.print(f"bits per byte  {result.bits_per_byte:.4f}  (validation loss {result.val_loss:.4f})")
    console.print(f"model   {folder / MODEL_FOLDER}", markup=False, soft_wrap=True)
