"""The cluster's state, from Slurm's own commands: partitions, nodes and jobs as typed values."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from malmoi.errors import UserError

TIMEOUT_SECONDS = 60
NO_CLUSTER = ("Could not establish a configuration source", "resolve_ctls_from_dns_srv", "slurm.conf: No such file")
"""What Slurm's commands say where they are installed and no cluster is configured."""
FIELD = re.compile(r"(?:^| )([A-Za-z][\w:/]*)=(\S*)")
GPUS = re.compile(r"gpu(?::(?P<kind>[A-Za-z][\w.-]*))?:(?P<count>\d+)")
ENDED = frozenset(
    ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "PREEMPTED")
)


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster."""

    name: str
    is_default: bool
    max_seconds: int | None
    """Longest time limit; none: unlimited."""


@dataclass(frozen=True)
class Node:
    """The resources of a node."""

    name: str
    cpus: int
    gpus: tuple[tuple[str, int], ...]
    """Type ('' where the cluster names none) and number."""

    def gpu_count(self, gpu_type: str | None) -> int:
        """Return the number of GPUs of `gpu_type`, or of any type if it is none."""
        return sum(count for name, count in self.gpus if gpu_type is None or name.lower() == gpu_type.lower())


@dataclass(frozen=True)
class JobState:
    """The state of a job, or of a task of a job array."""

    job: str
    state: str
    reason: str
    restarts: int
    run_time: str
    time_limit: str
    nodes: str
    start_time: str
    """Actual, or expected while the job is pending."""

    @property
    def has_ended(self) -> bool:
        """Whether the job will not run again."""
        return self.state in ENDED


def slurm_output(*words: str, cwd: Path | None = None) -> str:
    """Return what a command of Slurm prints on stdout.

    Raises:
        UserError: Slurm is not installed here, or the command failed or timed out; with its own message.
    """
    if shutil.which(words[0]) is None:
        raise UserError(f"no {words[0]} here: run this where the cluster's jobs are submitted, on a login node")
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=TIMEOUT_SECONDS,
            check=False,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{words[0]} did not answer in {TIMEOUT_SECONDS} s: check with `scontrol ping` whether the controller is up"
        ) from None
    if done.returncode != 0:
        message = " ".join((done.stderr or done.stdout).split())
        if any(sign in message for sign in NO_CLUSTER):
            raise UserError(
                f"{words[0]} finds no cluster here: run this where the cluster's jobs are submitted, on a login node"
            )
        raise UserError(f"{words[0]}: {message.removeprefix(f'{words[0]}: ').removeprefix('error: ')}")
    return done.stdout


def partitions() -> list[Partition]:
    """Return the cluster's partitions."""
    found = []
    for line in slurm_output("scontrol", "--oneliner", "show", "partition").splitlines():
        record = dict(FIELD.findall(line))
        if "PartitionName" in record:
            limit = record.get("MaxTime", "UNLIMITED")
            seconds = None if limit in ("UNLIMITED", "INFINITE", "NONE") else time_limit_seconds(limit, "MaxTime")
            found.append(Partition(record["PartitionName"], record.get("Default") == "YES", seconds))
    return found


def nodes_of(partition: str) -> list[Node]:
    """Return the nodes of a partition."""
    output = slurm_output("sinfo", "--noheader", "--Node", "--partition", partition, "--format=%N|%c|%G")
    found = []
    for line in sorted(set(output.splitlines())):
        name, cpus, resources = line.split("|", 2)
        gpus = tuple((match["kind"] or "", int(match["count"])) for match in GPUS.finditer(resources))
        found.append(Node(name, int(cpus.rstrip("+")), gpus))
    return found


def submit(script: Path, *options: str) -> str:
    """Submit a job script with `sbatch` and return the job's id.

    Raises:
        UserError: Slurm refuses it; with its own message.
    """
    return slurm_output("sbatch", "--parsable", *options, str(script)).strip().split(";")[0]


def job_states(job: str) -> list[JobState]:
    """Return a job's state, or that of each task of a job array; empty if neither queue nor accounting has the job."""
    try:
        lines = slurm_output("scontrol", "--oneliner", "show", "job", job).splitlines()
    except UserError:
        return list(_accounted_states(job))
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
        start_time=record.get("StartTime", ""),
    )


def _accounted_states(job: str) -> Iterator[JobState]:
    """Yield the states of a job that left the queue, from the accounting database if there is one."""
    if shutil.which("sacct") is None:
        return
    fields = "JobID,State,Elapsed,Timelimit,NodeList,Start"
    words = ("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", f"--format={fields}")
    try:
        lines = slurm_output(*words).splitlines()
    except UserError:
        return
    for line in lines:
        name, state, elapsed, limit, nodes, start = line.split("|")
        yield JobState(name, state.split()[0], "", 0, elapsed, limit, nodes, start)


def time_limit_seconds(text: str, option: str) -> int:
    """Return the seconds of a time limit in Slurm's formats: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Args:
        option: the option that it was given by, for the error message.

    Raises:
        UserError: it is in none of these formats.
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or (dash and not days.isdigit()) or len(parts) > 3:
        raise UserError(f"{option} {text}: write DAYS-HOURS:MINUTES:SECONDS, HOURS:MINUTES:SECONDS or minutes")
    numbers = list(map(int, parts))
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs."""
    slurm_output("scancel", *jobs)
