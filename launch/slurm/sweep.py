"""Sweeps: one run for every combination of a grid of settings, trained by the tasks of one job array."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from malmoi.configs.parser import parse_settings, setting_names
from malmoi.configs.renamed import unknown_setting
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.launch.slurm.checks import check_cluster, check_data_is_named, check_request
from malmoi.launch.slurm.cluster import job_states
from malmoi.launch.slurm.records import Submission, read_records
from malmoi.launch.slurm.request import Request
from malmoi.launch.slurm.script import JOB_FOLDER, RUN_DIGITS, ArrayJob, data_script, train_script
from malmoi.launch.slurm.submit import check_continues, check_not_queued, submit_scripts, write_settings
from malmoi.train.metrics.records import read_metrics
from malmoi.train.run_dir import finished_result

SWEEP_FILE = "sweep.json"
MOST_RUNS = 10**RUN_DIGITS


@dataclass(frozen=True)
class SweepRun:
    """One combination of the grid."""

    folder: str
    """In the sweep's folder."""
    values: dict[str, str]
    """Dotted setting -> value, as given."""


@dataclass(frozen=True)
class SweepResult:
    """The progress of a run of a sweep."""

    run: SweepRun
    step: int
    bits_per_byte: float | None
    """On the complete validation split if the run is finished, else at its last evaluation."""
    val_loss: float | None
    """Nats a token."""
    is_finished: bool


def parse_grid(entries: Sequence[str]) -> dict[str, list[str]]:
    """Parse `NAME=VALUE,VALUE` words into setting -> values; commas in brackets do not separate values.

    Raises:
        UserError: a word has another form, or names no setting of a run.
    """
    known = setting_names(RunSettings)
    grid: dict[str, list[str]] = {}
    for entry in entries:
        name, equals, text = entry.removeprefix("--").partition("=")
        values = [value.strip() for value in _split_values(text)]
        if not equals or not all(values):
            raise UserError(f"--grid {entry}: write NAME=VALUE,VALUE,... as in optim.lr=3e-4,6e-4")
        if name not in known:
            raise UserError(f"--grid {entry}: {unknown_setting(name, known)}")
        if name == "run":
            raise UserError(f"--grid {entry}: each run has its own folder below --run; sweep over another setting")
        if name in grid or len(set(values)) < len(values):
            raise UserError(f"--grid {entry}: {'the setting' if name in grid else 'a value'} is given twice")
        grid[name] = values
    return grid


def _split_values(text: str) -> list[str]:
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def combinations(grid: dict[str, list[str]]) -> list[SweepRun]:
    """Return every combination, the last setting varying fastest.

    Raises:
        UserError: there are too many.
    """
    chosen = itertools.product(*grid.values())
    runs = [
        SweepRun(f"{number:0{RUN_DIGITS}d}", dict(zip(grid, values, strict=True)))
        for number, values in enumerate(chosen)
    ]
    if len(runs) > MOST_RUNS:
        raise UserError(f"--grid gives {len(runs):,} runs; a sweep has at most {MOST_RUNS:,}: drop values")
    return runs


def sweep_requests(request: Request, runs: Sequence[SweepRun]) -> list[Request]:
    """Return the request of each run; all share one folder of shards, and none shares its checkpoints.

    Raises:
        UserError: a value is not of its setting's type.
    """
    cache = request.pre_training.data.cache or str(request.run / "shards")
    config = ["--config", request.config] if request.config else []
    requests = []
    for run in runs:
        flags = [f"--{name}={value}" for name, value in run.values.items()]
        if request.checkpoint_folder is not None:
            flags.append(f"--checkpoint.dir={request.checkpoint_folder}/{run.folder}")
        words = [*config, *request.overrides, f"--data.cache={cache}", *flags, f"--run={request.run / run.folder}"]
        settings = parse_settings(RunSettings, words, "malmoi slurm sweep", "")
        requests.append(replace(request, settings=settings))
    return requests


def submit_sweep(request: Request) -> tuple[Submission, ArrayJob]:
    """Check every run, freeze their settings in their folders, and submit one job array.

    Raises:
        UserError: the request is invalid, the cluster cannot run it, Slurm refuses it, or the folder holds another
            sweep.
    """
    runs = combinations(parse_grid(request.options.grid))
    array = ArrayJob(len(runs), request.options.max_concurrent)
    requests = sweep_requests(request, runs)
    for one in requests:
        check_request(one)
        check_continues(one.run, one.settings)
    check_cluster(request)
    for one in requests:
        check_data_is_named(one)
    check_not_queued(request.run)
    _write_sweep(request.run, runs)
    files = [write_settings(one.run, one.settings) for one in requests]
    first = requests[0].run
    (request.run / JOB_FOLDER).mkdir(exist_ok=True)
    data = data_script(request, first, str(files[0]), ()) if request.options.data_job else None
    return submit_scripts(request, train_script(request, "", (), array), data), array


def _write_sweep(folder: Path, runs: Sequence[SweepRun]) -> None:
    file = folder / SWEEP_FILE
    if file.is_file() and read_sweep(folder) != list(runs):
        raise UserError(f"{folder}: holds a sweep over another grid; choose another --run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps([asdict(run) for run in runs], indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --run") from error


def is_sweep(folder: Path) -> bool:
    """Return whether the folder is a sweep's."""
    return (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path) -> list[SweepRun]:
    """Return the runs of a sweep, in the order of the array's tasks.

    Raises:
        UserError: its file is broken.
    """
    try:
        return [SweepRun(**record) for record in json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / SWEEP_FILE}: broken ({error}); submit the sweep again") from error


def sweep_results(folder: Path) -> list[SweepResult]:
    """Return the runs of a sweep by validation bits per byte, runs without an evaluation last."""
    results = [_result(folder, run) for run in read_sweep(folder)]
    return sorted(
        results, key=lambda entry: (entry.bits_per_byte is None, entry.bits_per_byte or 0.0, entry.run.folder)
    )


def _result(folder: Path, run: SweepRun) -> SweepResult:
    metrics = read_metrics(folder / run.folder)
    step = metrics.steps[-1].step if metrics.steps else 0
    finished = finished_result(folder / run.folder)
    if finished is not None:
        return SweepResult(run, finished.steps, finished.bits_per_byte, finished.val_loss, True)
    if metrics.vals:
        last = metrics.vals[-1]
        return SweepResult(run, step, last.bpb, last.loss, False)
    return SweepResult(run, step, None, None, False)


def task_states(folder: Path) -> dict[str, str]:
    """Return the state of each run's task in the latest submission, by the run's folder, as far as Slurm knows it."""
    submissions = read_records(folder).submissions
    states: dict[str, str] = {}
    for state in [state for submission in submissions[-1:] for state in job_states(submission.job)]:
        task = state.job.split("_")[-1]
        if task.isdigit():
            states[task.zfill(RUN_DIGITS)] = state.state
        else:
            # Slurm lists pending tasks together, as 5_[3-7%2].
            states |= {run.folder: state.state for run in read_sweep(folder) if run.folder not in states}
    return states
