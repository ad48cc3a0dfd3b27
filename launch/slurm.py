"""`malmoi slurm render | submit | status | sweep`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from configs.command_line import parse_settings
from configs.commands import SlurmStatusOptions
from configs.errors import EXIT_DONE, BadInput, require_argument, require_options
from launch.subcommands import run_subcommand

WITH_TRAIN = (
    " Every setting of `malmoi train` may stand beside these, or with --finetune every setting of `malmoi finetune`; "
    "--cluster FILE.yaml holds some of these for all jobs."
)


def main(argv: Sequence[str]) -> int:
    """Find the subcommand and run it."""
    return run_subcommand("slurm", SUBCOMMANDS, _usage(), argv)


def _usage() -> str:
    return (
        "usage: malmoi slurm render | submit | status | sweep\n\n"
        "  render  print the job script that trains a run; with --data_job, the one that prepares its data\n"
        "  submit  check, write the job script into the run folder, and queue it\n"
        "  status  where a run, or a sweep, stands: malmoi slurm status RUN\n"
        "  sweep   queue a run for every combination of a grid: --grid NAME=VALUE,VALUE ...\n\n"
        "`malmoi slurm submit --help` lists the options."
    )


def render(argv: Sequence[str]) -> int:
    """Print a job script; nothing is written and no cluster is asked."""
    from launch.slurm_checks import check_request
    from launch.slurm_request import parse_request
    from launch.slurm_script import data_script, train_script

    does = "Print the job script that trains a run; with --data_job, the one that prepares its data before."
    request = parse_request(argv, "malmoi slurm render", does + WITH_TRAIN)
    _refuse_grid(request.options.grid)
    check_request(request)
    if request.options.data_job:
        print(data_script(request, request.run, request.config, request.overrides), end="")
    else:
        print(train_script(request, request.config, request.overrides), end="")
    return EXIT_DONE


def _refuse_grid(grid: Sequence[str]) -> None:
    if grid:
        raise BadInput("--grid is for `malmoi slurm sweep`, which trains a run for every combination")


def submit(argv: Sequence[str]) -> int:
    """Queue the job of a run and say how to follow it."""
    from launch.slurm_request import parse_request
    from launch.slurm_submit import how_to_follow, submit_run

    request = parse_request(argv, "malmoi slurm submit", "Queue the job that trains a run." + WITH_TRAIN)
    _refuse_grid(request.options.grid)
    print(how_to_follow(request, submit_run(request)))
    return EXIT_DONE


def sweep(argv: Sequence[str]) -> int:
    """Queue an array of runs and say how to follow it."""
    from launch.slurm_request import parse_request
    from launch.slurm_submit import how_to_follow
    from launch.slurm_sweep import submit_sweep

    request = parse_request(argv, "malmoi slurm sweep", "Queue a run for every combination of a grid." + WITH_TRAIN)
    require_options("slurm sweep", grid=bool(request.options.grid))
    submission, array = submit_sweep(request)
    print(how_to_follow(request, submission, array))
    return EXIT_DONE


def status(argv: Sequence[str]) -> int:
    """Say where a run stands; of a sweep, its runs by held-out bits per byte."""
    options = parse_settings(
        SlurmStatusOptions, argv, "malmoi slurm status", "Where a run, or a sweep, stands.", positional="run"
    )
    require_argument("slurm status", "RUN", bool(options.run))
    from launch.slurm_status import run_status, status_as_json, status_lines
    from launch.slurm_sweep import is_sweep

    folder = Path(options.run)
    if is_sweep(folder):
        _sweep_status(folder, options.json)
    elif options.json:
        print(status_as_json(run_status(folder)))
    else:
        print("\n".join(status_lines(folder, run_status(folder))))
    return EXIT_DONE


def _sweep_status(folder: Path, as_json: bool) -> None:
    from launch.slurm_cluster import job_states
    from launch.slurm_records import read_records
    from launch.slurm_script import RUN_DIGITS
    from launch.slurm_sweep import sweep_results

    results = sweep_results(folder)
    submissions = read_records(folder).submissions
    tasks = [state for submission in submissions[-1:] for state in job_states(submission.job)]
    states = {state.job.split("_")[-1].zfill(RUN_DIGITS): state.state for state in tasks}
    # Tasks that wait are told together, as 3-7.
    waiting = next((state.state for state in tasks if not state.job.split("_")[-1].isdigit()), "")
    rows = [(result, states.get(result.run.folder, waiting)) for result in results]
    if as_json:
        print(json.dumps({"runs": [{**asdict(result), "state": state} for result, state in rows]}, ensure_ascii=False))
        return
    from rich.table import Table

    from configs.table_console import table_console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = list(results[0].run.values)
    for heading in ("run", *names, "bits per byte", "held-out loss", "step", "state"):
        table.add_column(heading, overflow="fold")
    for result, state in rows:
        figures = [
            f"{value:.4f}" if value is not None else "-" for value in (result.bits_per_byte, result.held_out_loss)
        ]
        said = "done" if result.is_finished else state.lower() or "-"
        table.add_row(result.run.folder, *(result.run.values[name] for name in names), *figures, str(result.step), said)
    table_console().print(table)


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "render": render,
    "submit": submit,
    "status": status,
    "sweep": sweep,
}
