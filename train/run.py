"""A whole run: what is missing is built, then the model is trained, exported and asked for samples."""

from pathlib import Path

from rich.console import Console

from configs.errors import EXIT_DONE, EXIT_STOPPED
from configs.quick_imports import quick_imports
from configs.schema import RunSettings
from train.launcher import check_fits_launch, launched_ranks
from train.ranges import check_ranges
from train.run_folder import MODEL_FOLDER, RunResult, finished_result, is_main_rank, prepare_run, settings_as_json


def run(settings: RunSettings) -> int:
    """Do what `settings` say from where the run folder stands, and return the exit code.

    Raises:
        BadInput: settings, text or run folder are not usable.
    """
    console = Console(stderr=True, quiet=not is_main_rank(), highlight=False)
    folder = Path(settings.run)
    done = finished_result(folder)
    if done is not None and done.settings == settings_as_json(settings):
        console.print(
            f"{folder} is done already: to train again, choose another --run or delete it; to go on, raise train.steps",
            markup=False,
        )
        print_result(folder, done, console)
        return EXIT_DONE
    # Before text is prepared, which may take hours.
    check_ranges(settings.train)
    check_fits_launch(settings.train, settings.parallel.backend, launched_ranks())
    prepared = prepare_run(settings)
    with quick_imports():
        # torch takes seconds to import: only a run that gets as far as training pays for them.
        from train.session import train_session

    if not train_session(settings, prepared, console):
        return EXIT_STOPPED
    result = finished_result(folder)
    if result is not None:
        print_result(folder, result, console)
    return EXIT_DONE


def print_result(folder: Path, result: RunResult, console: Console) -> None:
    """Show samples, held-out figures and paths."""
    for number, sample in enumerate(result.samples, 1):
        console.print(f"\n[{number}] {sample}", markup=False, soft_wrap=True)
    console.print()
    if result.bits_per_byte is not None:
        console.print(f"held-out bits per byte  {result.bits_per_byte:.4f}  (loss {result.held_out_loss:.4f})")
    console.print(f"model   {folder / MODEL_FOLDER}", markup=False, soft_wrap=True)
