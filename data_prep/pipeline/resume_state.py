"""How far a build is, on disk: what a later process needs to resume it after this one was killed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from malmoi.atomic_io import write_atomic
from malmoi.checksums import FileRecord
from malmoi.data_prep.filters.cleaning import Cleaned
from malmoi.data_prep.filters.dedup import has_kept
from malmoi.data_prep.pipeline.build_once import WORK
from malmoi.data_prep.readers.chunks import Position
from malmoi.data_prep.readers.errors import Cause
from malmoi.data_prep.shards.manifest import SplitCounts
from malmoi.data_prep.shards.writer import NOTHING_WRITTEN, SplitState, cut_to_commit, is_as_committed

STATE_FILE = "state.json"


@dataclass(frozen=True)
class Commit:
    """Everything up to a position in the input, written and flushed to the disk."""

    position: Position
    train: SplitState
    val: SplitState
    records: int
    """Documents and record errors met."""
    skipped: dict[Cause, int]
    cleaned: dict[Cleaned, int]
    cut: int
    kept_bytes: int
    """Bytes of the file that remembers kept documents, for duplicates."""


def nothing_done() -> Commit:
    """Return the commit that every build begins with."""
    return Commit(Position(), NOTHING_WRITTEN, NOTHING_WRITTEN, 0, {}, {}, 0, 0)


def write_commit(commit: Commit, work: Path) -> None:
    """Make `commit` the one that a build resumes from. What it records must be on the disk already."""
    write_atomic(work / STATE_FILE, json.dumps(asdict(commit)).encode())


def has_commit(folder: Path) -> bool:
    """Return whether a build can resume from a folder under construction."""
    return (folder / WORK / STATE_FILE).is_file()


def _state(record: dict[str, object]) -> SplitState:
    finished, counts = record["finished"], record["counts"]
    assert isinstance(finished, list) and isinstance(counts, dict)
    files = tuple(FileRecord(**file) for file in finished)
    return SplitState(**{**record, "finished": files, "counts": SplitCounts(**counts)})  # type: ignore[arg-type]  # JSON


def restore_commit(folder: Path, work: Path) -> Commit:
    """Return the last commit in `folder`, its files checked and cut back to it; nothing done, where one is damaged."""
    try:
        record = json.loads((work / STATE_FILE).read_bytes())
        record["position"] = Position(**record["position"])
        record["train"], record["val"] = _state(record["train"]), _state(record["val"])
        commit = Commit(**record)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        commit = nothing_done()
    are_complete = all(is_as_committed(folder, work, name, state) for name, state in _splits(commit))
    if not are_complete or not has_kept(work, commit.kept_bytes):
        commit = nothing_done()
    for name, state in _splits(commit):
        cut_to_commit(folder, work, name, state)
    return commit


def _splits(commit: Commit) -> tuple[tuple[str, SplitState], ...]:
    return (("train", commit.train), ("val", commit.val))
