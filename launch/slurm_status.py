"""Where a run stands: what the queue says of its job, and how far training is."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.command_line import parse_settings
from configs.errors import BadInput
from configs.finetune_settings import FinetuneSettings
from configs.schema import RunSettings
from data_prep.manifest import read_manifest, shard_folder
from launch.slurm_cluster import JobState, job_states
from launch.slurm_records import read_records
from launch.slurm_script import JOB_FOLDER, SETTINGS_FILE
from train.finetune_result import finished_finetuning
from train.metrics import read_metrics
from train.order import SampleOrder
from train.run_folder import CONFIG_FILE, SHARDS_FOLDER, finished_result, is_finetuning
from train.size import planned_steps


@dataclass(frozen=True)
class RunStatus:
    """A run in the queue and in training; what is not known is none."""

    jobs: tuple[JobState, ...]
    starts: int
    restarts: int
    """Starts after the first of the latest submission."""
    step: int | None
    steps: int | None
    """Planned in all."""
    loss: float | None
    """Nats a token at `step`."""
    bits_per_byte: float | None
    """At the last look at the held-out part; none for a fine-tuning."""
    tokens_per_second: float | None
    seconds_left: float | None
    """Of training, at that speed, queues left out."""
    is_finished: bool


def run_status(folder: Path) -> RunStatus:
    """Ask the queue and read the run folder.

    Raises:
        BadInput: no job of this run was ever submitted, and nothing trained here either.
    """
    records = read_records(folder)
    metrics = read_metrics(folder)
    if not records.submissions and not records.starts and not metrics.steps:
        raise BadInput(f"{folder}: no run that was submitted; name the run folder, as `malmoi slurm submit` printed it")
    last = metrics.steps[-1] if metrics.steps else None
    finished = finished_result(folder) is not None or finished_finetuning(folder) is not None
    planned = _planned_steps(folder)
    left = None
    if last is not None and planned is not None and last.tokens_per_second > 0:
        left = max(0, planned - last.step) * (last.tokens / last.step) / last.tokens_per_second
    return RunStatus(
        jobs=tuple(state for job in records.latest_jobs() for state in job_states(job)),
        starts=len(records.starts),
        restarts=records.restarts(),
        step=last.step if last else None,
        steps=planned,
        loss=last.loss if last else None,
        bits_per_byte=metrics.held_out[-1].bits_per_byte if metrics.held_out else None,
        tokens_per_second=last.tokens_per_second if last else None,
        seconds_left=0.0 if finished else left,
        is_finished=finished,
    )


def _planned_steps(folder: Path) -> int | None:
    for file in (folder / CONFIG_FILE, folder / JOB_FOLDER / SETTINGS_FILE):
        if file.is_file() and is_finetuning(file):
            # How many epochs give, only the examples tell.
            return parse_settings(FinetuneSettings, ["--config", str(file)], "malmoi slurm status", "").train.steps
        if file.is_file():
            settings = parse_settings(RunSettings, ["--config", str(file)], "malmoi slurm status", "")
            break
    else:
        return None
    if settings.train.steps is not None:
        return settings.train.steps
    cache = Path(settings.data.cache) if settings.data.cache else folder / SHARDS_FOLDER
    try:
        tokens = read_manifest(shard_folder(cache)).train.counts.tokens
    except (BadInput, OSError):
        # Not prepared yet, or one of several folders in a shared cache.
        return None
    samples = SampleOrder(tokens, settings.model.block_size, settings.train.seed).samples_per_epoch
    return planned_steps(settings.train, samples)


def status_as_json(status: RunStatus) -> str:
    """One JSON object."""
    return json.dumps(asdict(status), ensure_ascii=False)


def status_lines(folder: Path, status: RunStatus) -> list[str]:
    """The status for a reader, a line each."""
    lines = []
    for job in status.jobs:
        reason = f" ({job.reason})" if job.reason and not job.has_ended else ""
        where = (
            f" on {job.nodes}" if job.nodes else f", expected to begin {job.starts}" if job.starts[:1].isdigit() else ""
        )
        time = f", {job.run_time} of {job.time_limit}" if job.run_time else ""
        lines.append(f"job {job.job}: {job.state}{reason}{where}{time}")
    if not status.jobs:
        lines.append("no job of it is known to the queue any more" if status.starts else "not started yet")
    lines.append(f"starts {status.starts}, restarts of the latest submission {status.restarts}")
    if status.step is None:
        lines.append("no step is logged yet")
    else:
        of = f" of {status.steps:,}" if status.steps else ""
        lines.append(
            f"step {status.step:,}{of}, loss {status.loss:.4f}, {status.tokens_per_second:,.0f} tokens/s, "
            f"{'done' if status.is_finished else _left(status.seconds_left)}"
        )
    if status.bits_per_byte is not None:
        lines.append(f"held-out bits per byte {status.bits_per_byte:.4f}")
    lines.append(f"logs {folder / JOB_FOLDER}")
    return lines


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"about {f'{days} d ' if days else ''}{hours}:{minutes % 60:02d} h of training left"
