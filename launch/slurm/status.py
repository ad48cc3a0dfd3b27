"""Status of a run: its jobs in the queue, and the progress of training."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.parser import parse_settings
from malmoi.configs.run import RunSettings
from malmoi.data_prep.shards.manifest import read_manifest, shard_folder
from malmoi.errors import UserError
from malmoi.launch.slurm.cluster import JobState, job_states
from malmoi.launch.slurm.records import read_records
from malmoi.launch.slurm.script import JOB_FOLDER, SETTINGS_FILE
from malmoi.train.data.sample_order import SampleOrder, planned_steps
from malmoi.train.finetune_result import finished_finetuning
from malmoi.train.metrics.records import read_metrics
from malmoi.train.run_dir import CONFIG_FILE, SHARDS_FOLDER, finished_result, is_finetuning


@dataclass(frozen=True)
class RunStatus:
    """A run in the queue and in training; what is unknown is none."""

    jobs: tuple[JobState, ...]
    is_submitted: bool
    """Whether any job of it was submitted or started."""
    starts: int
    restarts: int
    """Starts of the latest submission after its first."""
    step: int | None
    steps: int | None
    """Planned in all."""
    loss: float | None
    """Nats a token at `step`."""
    bits_per_byte: float | None
    """At the last evaluation on the validation split; none for fine-tuning."""
    tokens_per_second: float | None
    seconds_left: float | None
    """Of training at that speed, without time in the queue."""
    is_finished: bool


def run_status(folder: Path) -> RunStatus:
    """Return the status of a run from the queue and the run folder.

    Raises:
        UserError: no job of this run was submitted, and nothing was trained in the folder.
    """
    records = read_records(folder)
    metrics = read_metrics(folder)
    if not records.submissions and not records.starts and not metrics.steps:
        raise UserError(f"{folder}: no submitted run; name the run folder that `malmoi slurm submit` printed")
    last = metrics.steps[-1] if metrics.steps else None
    finished = finished_result(folder) is not None or finished_finetuning(folder) is not None
    planned = _planned_steps(folder)
    left = None
    if last is not None and planned is not None and last.tokens_per_sec > 0:
        left = max(0, planned - last.step) * (last.tokens_seen / last.step) / last.tokens_per_sec
    return RunStatus(
        jobs=tuple(state for job in records.latest_jobs() for state in job_states(job)),
        is_submitted=bool(records.submissions or records.starts),
        starts=len(records.starts),
        restarts=records.restarts(),
        step=last.step if last else None,
        steps=planned,
        loss=last.loss if last else None,
        bits_per_byte=metrics.vals[-1].bpb if metrics.vals else None,
        tokens_per_second=last.tokens_per_sec if last else None,
        seconds_left=0.0 if finished else left,
        is_finished=finished,
    )


def _planned_steps(folder: Path) -> int | None:
    for file in (folder / CONFIG_FILE, folder / JOB_FOLDER / SETTINGS_FILE):
        if file.is_file() and is_finetuning(file):
            # The steps of `epochs` depend on the number of examples.
            return parse_settings(FinetuneSettings, ["--config", str(file)], "malmoi slurm status", "").train.max_steps
        if file.is_file():
            settings = parse_settings(RunSettings, ["--config", str(file)], "malmoi slurm status", "")
            break
    else:
        return None
    if settings.train.max_steps is not None:
        return settings.train.max_steps
    cache = Path(settings.data.cache) if settings.data.cache else folder / SHARDS_FOLDER
    try:
        tokens = read_manifest(shard_folder(cache)).train.counts.tokens
    except (UserError, OSError):
        # The data is not prepared yet, or the shared cache holds several shard folders.
        return None
    samples = SampleOrder(tokens, settings.model.block_size, settings.train.seed).samples_per_epoch
    return planned_steps(settings.train, samples)


def status_as_json(status: RunStatus) -> str:
    """Return the status as one JSON object."""
    return json.dumps(asdict(status), ensure_ascii=False)


def status_lines(folder: Path, status: RunStatus) -> list[str]:
    """Return the status as lines of text."""
    lines = []
    for job in status.jobs:
        reason = f" ({job.reason})" if job.reason and not job.has_ended else ""
        if job.nodes:
            where = f" on {job.nodes}"
        else:
            where = f", expected to start {job.start_time}" if job.start_time[:1].isdigit() else ""
        time = f", {job.run_time} of {job.time_limit}" if job.run_time else ""
        lines.append(f"job {job.job}: {job.state}{reason}{where}{time}")
    if not status.jobs:
        lines.append(
            "its jobs have left the queue" if status.is_submitted else "trained here, and never submitted to Slurm"
        )
    lines.append(f"starts {status.starts}, restarts of the latest submission {status.restarts}")
    if status.step is None:
        lines.append("no step logged yet")
    else:
        of = f" of {status.steps:,}" if status.steps else ""
        lines.append(
            f"step {status.step:,}{of}, loss {status.loss:.4f}, {status.tokens_per_second:,.0f} tokens/s, "
            f"{'done' if status.is_finished else _left(status.seconds_left)}"
        )
    if status.bits_per_byte is not None:
        lines.append(f"validation bits per byte {status.bits_per_byte:.4f}")
    lines.append(f"logs {folder / JOB_FOLDER}")
    return lines


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"about {f'{days} d ' if days else ''}{hours}:{minutes % 60:02d} h of training left"
