"""Which collective a hanging run waits in, and which ranks did not come to it, from torch's flight recorder.

torch records the last collectives of each rank (https://docs.pytorch.org/tutorials/unstable/flight_recorder_tutorial.html).
Each rank writes its record into the run folder; whoever sees all of them can tell.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from malmoi.atomic_io import write_atomic
from malmoi.train.distributed.parallel_dims import ParallelDims

HANG_FOLDER = "hang"
BUFFER_VARIABLE, BUFFER_COLLECTIVES = "TORCH_FR_BUFFER_SIZE", 2000
DEFAULT_GROUP = "0"
"""torch's name of the process group of all ranks."""
GATHER_SECONDS, POLL_SECONDS = 6.0, 0.1
"""How long a rank waits for the others' records, less than `watchdog.REPORT_SECONDS`, and how often it looks."""
SAME_HANG_SECONDS = 120.0
"""By which two ranks' records of one hang are apart at most."""


def record_collectives() -> None:
    """Have torch record the collectives of process groups that are started from now on, unless the user said how."""
    os.environ.setdefault(BUFFER_VARIABLE, str(BUFFER_COLLECTIVES))


@dataclass(frozen=True)
class Collective:
    """One that a rank has entered."""

    group: str
    """torch's name of the process group."""
    number: int
    """Of this group's collectives, from 1; the same on every rank."""
    name: str
    sizes: str
    """Of its tensors."""


@dataclass(frozen=True)
class RankRecord:
    """The newest collectives of one rank."""

    rank: int
    collectives: tuple[Collective, ...]


def report_hang(folder: Path, dims: ParallelDims, device: torch.device) -> None:
    """Write this rank's record into `folder`; the first rank that could do so prints to stderr what all wait for.

    It calls no collective.
    """
    own = read_own_record(dims.dp_rank, device)
    write_record(folder, own)
    records = gathered_records(folder, own, dims.dp_size, GATHER_SECONDS)
    if records[0].rank == own.rank:
        for line in hang_lines(records, dims.dp_size):
            print(f"malmoi train: no progress: {line} ({folder})", file=sys.stderr, flush=True)


def read_own_record(rank: int, device: torch.device) -> RankRecord:
    """Return what torch has recorded in this process."""
    # What torch's own tools read; its annotations leave it out.
    c10d: Any = importlib.import_module("torch._C._distributed_c10d")
    dump = c10d._dump_nccl_trace_json if device.type == "cuda" else c10d._dump_fr_trace_json
    entries: Sequence[Mapping[str, Any]] = json.loads(dump(includeCollectives=True, onlyActive=False)).get(
        "entries", ()
    )
    return RankRecord(
        rank,
        tuple(
            Collective(
                group=str(entry["process_group"][0]),
                number=int(entry["collective_seq_id"]),
                name=str(entry["profiling_name"]).rpartition(":")[2],
                sizes=", ".join(str(size) for size in entry["input_sizes"]),
            )
            for entry in entries
            if not entry["is_p2p"]
        ),
    )


def write_record(folder: Path, record: RankRecord) -> None:
    """Write a rank's record into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = [[each.group, each.number, each.name, each.sizes] for each in record.collectives]
    write_atomic(_record_file(folder, record.rank), json.dumps(content).encode())


def gathered_records(folder: Path, own: RankRecord, num_ranks: int, wait_seconds: float) -> list[RankRecord]:
    """Return the records that ranks have written for this hang, by rank, waiting for those that are not there yet."""
    end = time.monotonic() + wait_seconds
    while True:
        found = [own if rank == own.rank else _read_record(folder, rank, own.rank) for rank in range(num_ranks)]
        records = [record for record in found if record is not None]
        if len(records) == num_ranks or time.monotonic() > end:
            return records
        time.sleep(POLL_SECONDS)


def hang_lines(records: Sequence[RankRecord], num_ranks: int) -> list[str]:
    """Return what the ranks of a hanging run waited for, a line each.

    Args:
        records: of the ranks that could write one, at least one.
    """
    lines = []
    silent = sorted(set(range(num_ranks)) - {record.rank for record in records})
    for group in sorted({each.group for record in records for each in record.collectives}):
        newest = {}
        for record in records:
            numbers = [each.number for each in record.collectives if each.group == group]
            # A rank without collectives of a smaller group is taken for none of its members.
            if numbers or group == DEFAULT_GROUP:
                newest[record.rank] = max(numbers, default=0)
        missed = min(newest.values()) + 1
        waiting = [rank for rank, number in newest.items() if number >= missed]
        if not waiting:
            if silent and missed > 1:
                lines.append(_collective_line(records, group, missed - 1, sorted(newest), []))
            continue
        absent = [rank for rank in newest if rank not in waiting]
        lines.append(_collective_line(records, group, missed, waiting, absent))
    if silent:
        lines.append(f"{_ranks(silent)} wrote no record: stopped, killed, or on a node that cannot write there")
    return lines or ["all ranks came to the same collectives: look at the stacks for what they do outside of them"]


def _collective_line(
    records: Sequence[RankRecord], group: str, number: int, waiting: Sequence[int], absent: Sequence[int]
) -> str:
    collective = next(
        each for record in records for each in record.collectives if (each.group, each.number) == (group, number)
    )
    came = f"{_ranks(waiting)} came to {collective.name} number {number} of group {group}, of {collective.sizes}"
    return f"{came}; {_ranks(absent)} did not" if absent else came


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks))}"


def _record_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _read_record(folder: Path, rank: int, own_rank: int) -> RankRecord | None:
    """Return a rank's record of this hang; None where there is none, or one of an earlier hang."""
    try:
        file = _record_file(folder, rank)
        # By the clock of the disk that both were written to.
        apart = _record_file(folder, own_rank).stat().st_mtime - file.stat().st_mtime
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return RankRecord(rank, tuple(Collective(*each) for each in content)) if apart < SAME_HANG_SECONDS else None
