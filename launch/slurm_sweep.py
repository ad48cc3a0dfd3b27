"""Sweeps: one run for every combination of a grid of settings, trained by the tasks of one job array."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from configs.command_line import parse_settings, setting_names
from configs.errors import BadInput, nearest_name_hint
from configs.schema import RunSettings
from launch.slurm_checks import check_cluster, check_request
from launch.slurm_records import Submission
from launch.slurm_request import Request
from launch.slurm_script import JOB_FOLDER, RUN_DIGITS, ArrayJob, data_script, train_script
from launch.slurm_submit import check_not_queued, queue, write_settings
from train.metrics import read_metrics
from train.run_folder import finished_result

SWEEP_FILE = "sweep.json"
MOST_RUNS = 10**RUN_DIGITS


@dataclass(frozen=True)
class SweepRun:
    """One combination of the grid."""

    folder: str
    """In the sweep's folder."""
    values: dict[str, str]
    """Dotted setting -> value, as it was written."""


@dataclass(frozen=True)
class SweepResult:
    """Where a run of a sweep stands."""

    run: SweepRun
    step: int
    bits_per_byte: float | None
    """Of the whole held-out part where the run is finished, else at its last look."""
    held_out_loss: float | None
    """Nats a token."""
    is_finished: bool


def grid_of(entries: Sequence[str]) -> dict[str, list[str]]:
    """`NAME=VALUE,VALUE` words as setting -> values; commas within brackets part no values.

    Raises:
        BadInput: a word is no such thing, or names no setting of a run.
    """
    known = setting_names(RunSettings)
    grid: dict[str, list[str]] = {}
    for entry in entries:
        name, equals, text = entry.removeprefix("--").partition("=")
        values = [value.strip() for value in _parted(text)]
        if not equals or not all(values):
            raise BadInput(f"--grid {entry}: write NAME=VALUE,VALUE,... as in train.learning_rate=3e-4,6e-4")
        if name not in known or name == "run":
            raise BadInput(f"--grid {entry}: '{name}' is no setting to sweep over{nearest_name_hint(name, known)}")
        if name in grid or len(set(values)) < len(values):
            raise BadInput(f"--grid {entry}: {'the setting' if name in grid else 'a value'} is there twice")
        grid[name] = values
    return grid


def _parted(text: str) -> list[str]:
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def combinations(grid: dict[str, list[str]]) -> list[SweepRun]:
    """Every combination, the last setting changing fastest.

    Raises:
        BadInput: there are too many.
    """
    chosen = itertools.product(*grid.values())
    runs = [
        SweepRun(f"{number:0{RUN_DIGITS}d}", dict(zip(grid, values, strict=True)))
        for number, values in enumerate(chosen)
    ]
    if len(runs) > MOST_RUNS:
        raise BadInput(f"--grid gives {len(runs):,} runs; at most {MOST_RUNS:,} are one sweep")
    return runs


def sweep_requests(request: Request, runs: Sequence[SweepRun]) -> list[Request]:
    """The request of each run; all share one folder of shards.

    Raises:
        BadInput: a value does not fit its setting.
    """
    cache = request.pre_training.data.cache or str(request.run / "shards")
    config = ["--config", request.config] if request.config else []
    requests = []
    for run in runs:
        flags = [f"--{name}={value}" for name, value in run.values.items()]
        words = [*config, *request.overrides, f"--data.cache={cache}", *flags, f"--run={request.run / run.folder}"]
        settings = parse_settings(RunSettings, words, "malmoi slurm sweep", "")
        requests.append(replace(request, settings=settings))
    return requests


def submit_sweep(request: Request) -> tuple[Submission, ArrayJob]:
    """Check every run, freeze their settings in their folders, and queue one array of jobs.

    Raises:
        BadInput: something is wrong that can be told before the queue, or the folder holds another sweep.
    """
    grid = grid_of(request.options.grid)
    runs = combinations(grid)
    array = ArrayJob(len(runs), request.options.at_once)
    requests = sweep_requests(request, runs)
    for one in requests:
        check_request(one)
    check_cluster(request)
    check_not_queued(request.run)
    _write_sweep(request.run, runs)
    files = [write_settings(one.run, one.settings) for one in requests]
    first = requests[0].run
    (request.run / JOB_FOLDER).mkdir(exist_ok=True)
    data = data_script(request, first, str(files[0]), ()) if request.options.data_job else None
    return queue(request, train_script(request, "", (), array), data), array


def _write_sweep(folder: Path, runs: Sequence[SweepRun]) -> None:
    file = folder / SWEEP_FILE
    if file.is_file() and read_sweep(folder) != list(runs):
        raise BadInput(f"{folder}: holds a sweep over another grid; choose another --run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps([asdict(run) for run in runs], indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); choose another --run") from error


def is_sweep(folder: Path) -> bool:
    """Whether the folder is a sweep's."""
    return (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path) -> list[SweepRun]:
    """The runs of a sweep, in the order of the array's tasks.

    Raises:
        BadInput: its file is broken.
    """
    try:
        return [SweepRun(**record) for record in json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{folder / SWEEP_FILE}: broken ({error}); submit the sweep again") from error


def sweep_results(folder: Path) -> list[SweepResult]:
    """The runs of a sweep, the best first and those without a held-out figure last."""
    results = [_result(folder, run) for run in read_sweep(folder)]
    return sorted(
        results, key=lambda entry: (entry.bits_per_byte is None, entry.bits_per_byte or 0.0, entry.run.folder)
    )


def _result(folder: Path, run: SweepRun) -> SweepResult:
    metrics = read_metrics(folder / run.folder)
    step = metrics.steps[-1].step if metrics.steps else 0
    finished = finished_result(folder / run.folder)
    if finished is not None:
        return SweepResult(run, finished.steps, finished.bits_per_byte, finished.held_out_loss, True)
    if metrics.held_out:
        look = metrics.held_out[-1]
        return SweepResult(run, step, look.bits_per_byte, look.held_out_loss, False)
    return SweepResult(run, step, None, None, False)
