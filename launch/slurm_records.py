"""What submitting and starting leave in a run folder: the jobs that were queued, and the starts of their scripts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.slurm_script import JOB_FOLDER

SUBMITTED_FILE = "submitted.jsonl"
STARTS_FILE = "starts"


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
    """The records in a run folder; empty where nothing was submitted."""
    folder = run / JOB_FOLDER
    return JobRecords(
        tuple(Submission(**json.loads(line)) for line in _lines(folder / SUBMITTED_FILE)),
        tuple(_start(line) for line in _lines(folder / STARTS_FILE)),
    )


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def _start(line: str) -> Start:
    job, _, step, fruitless, _, successor = line.split()
    return Start(job, int(step), int(fruitless), None if successor == "-" else successor)


def record_submission(run: Path, submission: Submission) -> None:
    """Add a submission to the records."""
    with (run / JOB_FOLDER / SUBMITTED_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(submission)) + "\n")
