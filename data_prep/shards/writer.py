"""Writes one split's shards, so that a build killed at any instant can resume from its last commit."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from malmoi.atomic_io import keep_prefix
from malmoi.checksums import READ_BYTES, FileRecord, file_checksum, file_findings, file_record, new_checksum
from malmoi.data_prep.shards.indexed_dataset import write_index
from malmoi.data_prep.shards.manifest import REMEDY, Split, SplitCounts


@dataclass(frozen=True)
class SplitState:
    """How far a split is written: what a commit records, and a resumed build continues from."""

    finished: tuple[FileRecord, ...]
    """The files of finished shards, `.bin` and `.idx` in turn."""
    open_bytes: int
    """Bytes of the open shard's `.bin`; 0: no shard is open."""
    open_documents: int
    open_checksum: str
    counts: SplitCounts

    def as_split(self) -> Split:
        """Return the split, of finished shards."""
        bins = (record.name for record in self.finished if record.name.endswith(".bin"))
        return Split(tuple(name.removesuffix(".bin") for name in bins), self.counts)


NOTHING_WRITTEN = SplitState((), 0, 0, "", SplitCounts(0, 0, 0, 0))


class SplitWriter:
    """Writes documents to `NAME-00000.bin/.idx`, `NAME-00001...`; a shard is closed by the chunk that fills it."""

    def __init__(
        self, folder: Path, work: Path, name: str, dtype: np.dtype[np.generic], shard_tokens: int, state: SplitState
    ) -> None:
        """Begin at `state`; if that has an open shard, its files hold what the state counts, and no more."""
        self._folder, self._name, self._dtype, self._shard_tokens = folder, name, dtype, shard_tokens
        self._finished = list(state.finished)
        self._counts = state.counts
        self._bin: BinaryIO | None = None
        self._lengths_path = work / f"{name}.lengths"
        self._lengths_file: BinaryIO | None = None
        self._open_bytes, self._open_documents, self._checksum = 0, 0, new_checksum()
        if state.open_bytes:
            with (folder / f"{self._stem()}.bin").open("rb") as stream:
                while block := stream.read(READ_BYTES):
                    self._checksum.update(block)
            self._open("ab")
            self._open_bytes, self._open_documents = state.open_bytes, state.open_documents

    @property
    def finished_shards(self) -> int:
        """Shards that are closed."""
        return len(self._finished) // 2

    @property
    def counts(self) -> SplitCounts:
        """What was added so far, the open shard included."""
        return self._counts

    def _stem(self) -> str:
        return f"{self._name}-{len(self._finished) // 2:05d}"

    def _open(self, mode: str) -> None:
        self._bin = (self._folder / f"{self._stem()}.bin").open(mode)  # type: ignore[assignment]  # mode is binary
        self._lengths_file = self._lengths_path.open(mode)  # type: ignore[assignment]  # mode is binary

    def add(self, ids: NDArray[Any], lengths: NDArray[np.int32], text_bytes: int, characters: int) -> bool:
        """Append the documents of one chunk, and return whether this closed a shard.

        Args:
            ids: their tokens end to end, of the shards' dtype.
            lengths: tokens of each.
        """
        if not len(lengths):
            return False
        if self._bin is None:
            self._open("wb")
        assert self._bin is not None and self._lengths_file is not None
        content = np.ascontiguousarray(ids).data
        self._bin.write(content)
        self._checksum.update(content)
        self._lengths_file.write(lengths.astype("<i4", copy=False).tobytes())
        self._open_bytes += ids.nbytes
        self._open_documents += len(lengths)
        before = self._counts
        self._counts = SplitCounts(
            before.documents + len(lengths),
            before.tokens + len(ids),
            before.bytes + text_bytes,
            before.characters + characters,
        )
        if self._open_bytes >= self._shard_tokens * self._dtype.itemsize:
            self.close()
            return True
        return False

    def close(self) -> None:
        """Finish the open shard, if any, and flush it to the disk."""
        if self._bin is None or self._lengths_file is None:
            return
        self._sync()
        self._lengths_file.close()
        self._bin.close()
        stem = self._stem()
        with (self._folder / f"{stem}.idx").open("wb") as index:
            write_index(index, np.fromfile(self._lengths_path, dtype="<i4"), self._dtype)
            index.flush()
            os.fsync(index.fileno())
        self._finished.append(FileRecord(f"{stem}.bin", self._open_bytes, self._checksum.hexdigest()))
        self._finished.append(file_record(self._folder / f"{stem}.idx"))
        self._bin, self._lengths_file = None, None
        self._open_bytes, self._open_documents, self._checksum = 0, 0, new_checksum()

    def _sync(self) -> None:
        for stream in (self._bin, self._lengths_file):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())

    def state(self) -> SplitState:
        """Flush this split to the disk, and return how far it is written."""
        self._sync()
        checksum = self._checksum.hexdigest() if self._open_bytes else ""
        return SplitState(tuple(self._finished), self._open_bytes, self._open_documents, checksum, self._counts)

    def abandon(self) -> None:
        """Close the open files without finishing them."""
        for stream in (self._bin, self._lengths_file):
            if stream is not None:
                # After a full disk even closing fails; everything needed was committed.
                try:
                    stream.close()
                except OSError:
                    continue
        self._bin, self._lengths_file = None, None


def is_as_committed(folder: Path, work: Path, name: str, state: SplitState) -> bool:
    """Return whether every finished file of a split is complete, by checksum, the open ones as committed."""
    if any(file_findings(folder, state.finished, REMEDY)):
        return False
    if not state.open_bytes:
        return True
    bin_file, lengths_file = folder / f"{name}-{len(state.finished) // 2:05d}.bin", work / f"{name}.lengths"
    if not bin_file.is_file() or not lengths_file.is_file():
        return False
    return (
        lengths_file.stat().st_size >= 4 * state.open_documents
        and bin_file.stat().st_size >= state.open_bytes
        and file_checksum(bin_file, state.open_bytes) == state.open_checksum
    )


def cut_to_commit(folder: Path, work: Path, name: str, state: SplitState) -> None:
    """Cut a split's files back to what was committed: delete later shards, and the later part of the open one."""
    stem = f"{name}-{len(state.finished) // 2:05d}"
    kept = {record.name for record in state.finished} | ({f"{stem}.bin"} if state.open_bytes else set())
    for file in folder.glob(f"{name}-*"):
        if file.name not in kept:
            file.unlink()
    if state.open_bytes:
        keep_prefix(folder / f"{stem}.bin", state.open_bytes)
        keep_prefix(work / f"{name}.lengths", 4 * state.open_documents)
