"""Records of a run's jobs in its folder: the submissions, and the starts of the job script."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from malmoi.atomic_io import write_atomic
from malmoi.errors import UserError, one_line
from malmoi.launch.slurm.script import JOB_FOLDER

SUBMITTED_FILE = "submitted.jsonl"
STARTS_FILE = "starts"
JOB_ID = re.compile(r"\d+(_\d+)?")
Record = TypeVar("Record")


@dataclass(frozen=True)
class Submission:
    """A submitted job."""

    job: str
    """Id of the training job."""
    data_job: str | None
    """Id of the job that prepares the data, which training waits for."""
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class Start:
    """A start of the job script, which writes one line each time."""

    job: str
    step: int
    """Newest checkpoint at that time."""
    starts_without_progress: int
    """Consecutive starts before it that wrote no checkpoint."""
    next_job: str | None
    """The job that resumes after this one, in a chain."""


@dataclass(frozen=True)
class JobRecords:
    """All submissions and starts of a run, the latest last."""

    submissions: tuple[Submission, ...]
    starts: tuple[Start, ...]

    def latest_jobs(self) -> list[str]:
        """Return the ids of the current jobs: of the latest submission, or a chain's newest job and the next."""
        ids: list[str] = []
        if self.submissions:
            latest = self.submissions[-1]
            ids = [latest.job] if latest.data_job is None else [latest.data_job, latest.job]
        for start in self.starts[-1:]:
            if all(_number(start.job) > _number(known) for known in ids):
                ids = [start.job]
            ids += [] if start.next_job is None else [start.next_job]
        return ids

    def restarts(self) -> int:
        """Return the number of starts of the latest submission after its first."""
        first = _number(self.submissions[-1].job) if self.submissions else 0
        return max(0, sum(_number(start.job) >= first for start in self.starts) - 1)


def _number(job: str) -> int:
    return int(job.split("_")[0])


def read_records(run: Path) -> JobRecords:
    """Read the records in a run folder; empty if no job was submitted.

    Raises:
        UserError: a line is not a record.
    """
    folder = run / JOB_FOLDER
    return JobRecords(_records(folder / SUBMITTED_FILE, _submission), _records(folder / STARTS_FILE, _start))


def _records(file: Path, parse: Callable[[str], Record]) -> tuple[Record, ...]:
    found = []
    for number, line in enumerate(_complete_lines(file), 1):
        try:
            found.append(parse(line))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file}:{number}: not a record of a job ({one_line(error)}); delete the line") from error
    return tuple(found)


def _complete_lines(file: Path) -> list[str]:
    """Return all lines except an unterminated last one, whose writer was killed or is still writing."""
    return file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if file.is_file() else []


def _submission(line: str) -> Submission:
    record = json.loads(line)
    data_job = record["data_job"]
    return Submission(_job(record["job"]), None if data_job is None else _job(data_job), float(record["time"]))


def _start(line: str) -> Start:
    job, _, step, without_progress, _, next_job = line.split()
    return Start(_job(job), int(step), int(without_progress), None if next_job == "-" else _job(next_job))


def _job(job: str) -> str:
    if not JOB_ID.fullmatch(job):
        raise ValueError(f"{job} is not a job id")
    return job


def record_submission(run: Path, submission: Submission) -> None:
    """Add a submission to the records."""
    file = run / JOB_FOLDER / SUBMITTED_FILE
    lines = [*_complete_lines(file), json.dumps(asdict(submission))]
    write_atomic(file, "".join(f"{line}\n" for line in lines).encode())
