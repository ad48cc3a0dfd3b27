"""What the cluster answers: Slurm's own commands, each under a time limit, as typed values."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import BadInput

TIMEOUT_SECONDS = 60
FIELD = re.compile(r"(?:^| )([A-Za-z][\w:/]*)=(\S*)")
GPUS = re.compile(r"gpu(?::(?P<kind>[A-Za-z][\w.-]*))?:(?P<count>\d+)")
ENDED = frozenset(
    ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "PREEMPTED")
)


@dataclass(frozen=True)
class Partition:
    """A part of the cluster that jobs are sent to."""

    name: str
    is_default: bool
    max_seconds: int | None
    """Longest time limit; none: any."""


@dataclass(frozen=True)
class NodeKind:
    """What a node has."""

    name: str
    cpus: int
    gpus: tuple[tuple[str, int], ...]
    """Kind ('' where the cluster names none) and number."""

    def gpu_count(self, kind: str | None) -> int:
        """GPUs of `kind`, or of any where none is asked for."""
        return sum(count for name, count in self.gpus if kind is None or name.lower() == kind.lower())


@dataclass(frozen=True)
class JobState:
    """A job, or a task of an array, as the queue knows it."""

    job: str
    state: str
    reason: str
    restarts: int
    run_time: str
    time_limit: str
    nodes: str
    starts: str
    """When it began, or is expected to."""

    @property
    def has_ended(self) -> bool:
        """Whether it will run no more."""
        return self.state in ENDED


def ask(*words: str, cwd: Path | None = None) -> str:
    """What a command of Slurm prints.

    Raises:
        BadInput: there is no Slurm here, or the command failed; with its own words.
    """
    if shutil.which(words[0]) is None:
        raise BadInput(f"no {words[0]} here: run this where the cluster's jobs are submitted, on a login node")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, cwd=cwd)
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"{words[0]} gave no answer in {TIMEOUT_SECONDS} s: the cluster's controller may be down"
        ) from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise BadInput(f"{words[0]}: {said.removeprefix(f'{words[0]}: ').removeprefix('error: ')}")
    return done.stdout


def partitions() -> list[Partition]:
    """The cluster's partitions."""
    found = []
    for line in ask("scontrol", "--oneliner", "show", "partition").splitlines():
        record = dict(FIELD.findall(line))
        if "PartitionName" in record:
            limit = record.get("MaxTime", "UNLIMITED")
            seconds = None if limit in ("UNLIMITED", "INFINITE", "NONE") else time_limit_seconds(limit, "MaxTime")
            found.append(Partition(record["PartitionName"], record.get("Default") == "YES", seconds))
    return found


def nodes_of(partition: str) -> list[NodeKind]:
    """The nodes of a partition."""
    lines = ask("sinfo", "--noheader", "--Node", "--partition", partition, "--format=%N|%c|%G").splitlines()
    found = []
    for line in sorted(set(lines)):
        name, cpus, resources = line.split("|", 2)
        gpus = tuple((match["kind"] or "", int(match["count"])) for match in GPUS.finditer(resources))
        found.append(NodeKind(name, int(cpus.rstrip("+")), gpus))
    return found


def submit(script: Path, *options: str) -> str:
    """Hand a job script to the queue and return the job's id.

    Raises:
        BadInput: Slurm refuses it; with its own words.
    """
    return ask("sbatch", "--parsable", *options, str(script)).strip().split(";")[0]


def job_states(job: str) -> list[JobState]:
    """A job's state, and of an array each task's; empty where nobody remembers the job."""
    try:
        lines = ask("scontrol", "--oneliner", "show", "job", job).splitlines()
    except BadInput:
        return list(_remembered(job))
    return [_job_state(dict(FIELD.findall(line))) for line in lines if "JobId=" in line]


def _job_state(record: dict[str, str]) -> JobState:
    task = record.get("ArrayTaskId")
    return JobState(
        job=f"{record['ArrayJobId']}_{task}" if task else record["JobId"],
        state=record["JobState"],
        reason="" if record.get("Reason") in (None, "None") else record["Reason"],
        restarts=int(record.get("Restarts", 0)),
        run_time=record.get("RunTime", ""),
        time_limit=record.get("TimeLimit", ""),
        nodes="" if record.get("NodeList") in (None, "(null)") else record["NodeList"],
        starts=record.get("StartTime", ""),
    )


def _remembered(job: str) -> Iterator[JobState]:
    """What the accounting data base, if there is one, says of a job that left the queue."""
    if shutil.which("sacct") is None:
        return
    fields = "JobID,State,Elapsed,Timelimit,NodeList,Start"
    try:
        lines = ask("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", f"--format={fields}")
    except BadInput:
        return
    for line in lines.splitlines():
        name, state, elapsed, limit, nodes, start = line.split("|")
        yield JobState(name, state.split()[0], "", 0, elapsed, limit, nodes, start)


def time_limit_seconds(text: str, option: str) -> int:
    """Seconds of a time limit as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Args:
        option: what it was given by, for the error.

    Raises:
        BadInput: it is none.
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or (dash and not days.isdigit()) or len(parts) > 3:
        raise BadInput(f"{option} {text}: write DAYS-HOURS:MINUTES:SECONDS, HOURS:MINUTES:SECONDS or minutes")
    numbers = list(map(int, parts))
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs out of the queue."""
    ask("scancel", *jobs)
