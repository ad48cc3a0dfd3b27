"""How far a build is, on disk: what a later process needs to go on after this one was killed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.chunks import Position
from data_prep.cleaning import Cleaned
from data_prep.duplicates import remembers
from data_prep.faults import Cause
from data_prep.files import write_whole
from data_prep.manifest import FileRecord, SplitCounts
from data_prep.once import WORK
from data_prep.split_writer import NOTHING_WRITTEN, SplitState, cut_to_commit, is_as_committed

STATE_FILE = "state.json"


@dataclass(frozen=True)
class Commit:
    """Everything up to a position in the input, written and seen onto the disk."""

    position: Position
    train: SplitState
    held_out: SplitState
    records: int
    """Documents and faults met."""
    skipped: dict[Cause, int]
    cleaned: dict[Cleaned, int]
    cut: int
    kept_bytes: int
    """Bytes of the file that remembers kept documents, for duplicates."""


def nothing_done() -> Commit:
    """The commit that every build begins with."""
    return Commit(Position(), NOTHING_WRITTEN, NOTHING_WRITTEN, 0, {}, {}, 0, 0)


def write_commit(commit: Commit, work: Path) -> None:
    """Make `commit` the one that a take-over goes on from. What it tells must be on the disk already."""
    write_whole(work / STATE_FILE, json.dumps(asdict(commit)).encode())


def has_commit(folder: Path) -> bool:
    """Whether a build can go on from what lies in a folder under construction."""
    return (folder / WORK / STATE_FILE).is_file()


def _state(record: dict[str, object]) -> SplitState:
    finished, counts = record["finished"], record["counts"]
    assert isinstance(finished, list) and isinstance(counts, dict)
    files = tuple(FileRecord(**file) for file in finished)
    return SplitState(**{**record, "finished": files, "counts": SplitCounts(**counts)})  # type: ignore[arg-type]  # JSON


def take_over_commit(folder: Path, work: Path) -> Commit:
    """The last commit in `folder`, its files checked and cut back to it; nothing done, where they are not whole."""
    try:
        record = json.loads((work / STATE_FILE).read_bytes())
        record["position"] = Position(**record["position"])
        record["train"], record["held_out"] = _state(record["train"]), _state(record["held_out"])
        commit = Commit(**record)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        commit = nothing_done()
    are_whole = all(is_as_committed(folder, work, name, state) for name, state in _splits(commit))
    if not are_whole or not remembers(work, commit.kept_bytes):
        commit = nothing_done()
    for name, state in _splits(commit):
        cut_to_commit(folder, work, name, state)
    return commit


def _splits(commit: Commit) -> tuple[tuple[str, SplitState], ...]:
    return (("train", commit.train), ("held_out", commit.held_out))
