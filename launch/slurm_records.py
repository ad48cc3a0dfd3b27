"""What submitting and starting leave in a run folder: the jobs that were queued, and the starts of their scripts."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from configs.errors import BadInput, one_line
from data_prep.files import write_whole
from launch.slurm_script import JOB_FOLDER

SUBMITTED_FILE = "submitted.jsonl"
STARTS_FILE = "starts"
JOB_ID = re.compile(r"\d+(_\d+)?")
Record = TypeVar("Record")


@dataclass(frozen=True)
class Submission:
    """What was handed to the queue."""

    job: str
    """Id of the training job."""
    data_job: str | None
    """Id of the job that prepares the data, which training waits for."""
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class Start:
    """A line that a job script leaves when it starts."""

    job: str
    step: int
    """Newest checkpoint at that time."""
    fruitless: int
    """Starts in a row before it without a new checkpoint."""
    successor: str | None
    """The job that goes on after this one, in a chain."""


@dataclass(frozen=True)
class JobRecords:
    """All submissions and starts of a run, the latest last."""

    submissions: tuple[Submission, ...]
    starts: tuple[Start, ...]

    def latest_jobs(self) -> list[str]:
        """The jobs that matter now: of the latest submission, or of a chain its newest link and the next."""
        ids: list[str] = []
        if self.submissions:
            latest = self.submissions[-1]
            ids = [latest.job] if latest.data_job is None else [latest.data_job, latest.job]
        for start in self.starts[-1:]:
            if all(_number(start.job) > _number(known) for known in ids):
                ids = [start.job]
            ids += [] if start.successor is None else [start.successor]
        return ids

    def restarts(self) -> int:
        """Starts after the first of the latest submission."""
        first = _number(self.submissions[-1].job) if self.submissions else 0
        return max(0, sum(_number(start.job) >= first for start in self.starts) - 1)


def _number(job: str) -> int:
    return int(job.split("_")[0])


def read_records(run: Path) -> JobRecords:
    """The records in a run folder; empty where nothing was submitted.

    Raises:
        BadInput: a line is no record.
    """
    folder = run / JOB_FOLDER
    return JobRecords(_records(folder / SUBMITTED_FILE, _submission), _records(folder / STARTS_FILE, _start))


def _records(file: Path, parse: Callable[[str], Record]) -> tuple[Record, ...]:
    found = []
    for number, line in enumerate(_whole_lines(file), 1):
        try:
            found.append(parse(line))
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(f"{file}:{number}: no record of a job ({one_line(error)}); delete the line") from error
    return tuple(found)


def _whole_lines(file: Path) -> list[str]:
    """All lines but a last one without its end, whose writer was killed or is still at it."""
    return file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if file.is_file() else []


def _submission(line: str) -> Submission:
    record = json.loads(line)
    data_job = record["data_job"]
    return Submission(_job(record["job"]), None if data_job is None else _job(data_job), float(record["time"]))


def _start(line: str) -> Start:
    job, _, step, fruitless, _, successor = line.split()
    return Start(_job(job), int(step), int(fruitless), None if successor == "-" else _job(successor))


def _job(job: str) -> str:
    if not JOB_ID.fullmatch(job):
        raise ValueError(f"{job} is no job's id")
    return job


def record_submission(run: Path, submission: Submission) -> None:
    """Add a submission to the records."""
    file = run / JOB_FOLDER / SUBMITTED_FILE
    lines = [*_whole_lines(file), json.dumps(asdict(submission))]
    write_whole(file, "".join(f"{line}\n" for line in lines).encode())
