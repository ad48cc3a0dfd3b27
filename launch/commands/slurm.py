"""`malmoi slurm render | submit | status | sweep`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from malmoi.configs.commands import SlurmStatusOptions
from malmoi.configs.parser import parse_settings
from malmoi.errors import EXIT_DONE, UserError, require_argument, require_options
from malmoi.launch.commands import Subcommand, run_subcommand

WITH_TRAIN = (
    " Takes every setting of `malmoi train` besides, or with --finetune every setting of `malmoi finetune`; "
    "--cluster FILE.yaml holds the options that all jobs on a cluster need."
)


def main(argv: Sequence[str]) -> int:
    """Find the subcommand and run it."""
    return run_subcommand("slurm", SUBCOMMANDS, _usage(), argv)


def _usage() -> str:
    return (
        "usage: malmoi slurm render | submit | status | sweep\n\n"
        "  render  print the job script that trains a run; with --data_job, the one that prepares its data\n"
        "  submit  check the job, write its script into the run folder, and submit it\n"
        "  status  show the progress of a run or a sweep: malmoi slurm status RUN\n"
        "  sweep   submit a run for every combination of a grid: --grid NAME=VALUE,VALUE ...\n\n"
        "`malmoi slurm submit --help` lists the options."
    )


def render(argv: Sequence[str]) -> int:
    """Print a job script; nothing is written, and no Slurm is needed."""
    from malmoi.launch.slurm.checks import check_request
    from malmoi.launch.slurm.request import parse_request
    from malmoi.launch.slurm.script import data_script, train_script

    about = "Print the job script that trains a run; with --data_job, the one that prepares its data."
    request = parse_request(argv, "malmoi slurm render", about + WITH_TRAIN)
    _refuse_grid(request.options.grid)
    check_request(request)
    if request.options.data_job:
        print(data_script(request, request.run, request.config, request.overrides), end="")
    else:
        print(train_script(request, request.config, request.overrides), end="")
    return EXIT_DONE


def _refuse_grid(grid: Sequence[str]) -> None:
    if grid:
        raise UserError("--grid is an option of `malmoi slurm sweep`, which trains a run for every combination")


def submit(argv: Sequence[str]) -> int:
    """Submit the job of a run, and print how to follow it."""
    from malmoi.launch.slurm.request import parse_request
    from malmoi.launch.slurm.submit import submission_summary, submit_run

    request = parse_request(argv, "malmoi slurm submit", "Submit the job that trains a run." + WITH_TRAIN)
    _refuse_grid(request.options.grid)
    print(submission_summary(request, submit_run(request)))
    return EXIT_DONE


def sweep(argv: Sequence[str]) -> int:
    """Submit a job array of runs, and print how to follow it."""
    from malmoi.launch.slurm.request import parse_request
    from malmoi.launch.slurm.submit import submission_summary
    from malmoi.launch.slurm.sweep import submit_sweep

    request = parse_request(argv, "malmoi slurm sweep", "Submit a run for every combination of a grid." + WITH_TRAIN)
    require_options("slurm sweep", grid=bool(request.options.grid))
    submission, array = submit_sweep(request)
    print(submission_summary(request, submission, array))
    return EXIT_DONE


def status(argv: Sequence[str]) -> int:
    """Show the progress of a run, or of a sweep with its runs by validation bits per byte."""
    about = "Show the progress of a run or a sweep."
    options = parse_settings(SlurmStatusOptions, argv, "malmoi slurm status", about, positional="run")
    require_argument("slurm status", "RUN", bool(options.run))
    from malmoi.launch.slurm.status import run_status, status_as_json, status_lines
    from malmoi.launch.slurm.sweep import is_sweep

    folder = Path(options.run)
    if is_sweep(folder):
        _sweep_status(folder, options.json)
    elif options.json:
        print(status_as_json(run_status(folder)))
    else:
        print("\n".join(status_lines(folder, run_status(folder))))
    return EXIT_DONE


def _sweep_status(folder: Path, as_json: bool) -> None:
    from malmoi.launch.slurm.sweep import sweep_results, task_states

    states = task_states(folder)
    rows = [(result, states.get(result.run.folder, "")) for result in sweep_results(folder)]
    if as_json:
        print(json.dumps({"runs": [{**asdict(result), "state": state} for result, state in rows]}, ensure_ascii=False))
        return
    from rich.table import Table

    from malmoi.console import table_console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = list(rows[0][0].run.values)
    for heading in ("run", *names, "bits per byte", "val loss", "step", "state"):
        table.add_column(heading, overflow="fold")
    for result, state in rows:
        values = (result.bits_per_byte, result.val_loss)
        figures = ["-" if value is None else f"{value:.4f}" for value in values]
        shown = "done" if result.is_finished else state.lower() or "-"
        settings = (result.run.values[name] for name in names)
        table.add_row(result.run.folder, *settings, *figures, str(result.step), shown)
    table_console().print(table)


SUBCOMMANDS: dict[str, Subcommand] = {
    "render": render,
    "submit": submit,
    "status": status,
    "sweep": sweep,
}
