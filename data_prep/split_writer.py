"""Writes one split's shards, so that a build killed at any instant can go on from its last commit."""

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.files import keep_prefix
from data_prep.manifest import FileRecord, SplitCounts, file_checksum, file_record
from data_prep.shards import write_index


@dataclass(frozen=True)
class SplitState:
    """How far a split is written: what a commit tells, and a take-over goes on from."""

    finished: tuple[FileRecord, ...]
    """The files of finished shards, `.bin` and `.idx` in turn."""
    open_bytes: int
    """Bytes of the open shard's `.bin`; 0: no shard is open."""
    open_documents: int
    open_checksum: str
    counts: SplitCounts


NOTHING_WRITTEN = SplitState((), 0, 0, "", SplitCounts(0, 0, 0, 0))


class SplitWriter:
    """Writes documents to `NAME-00000.bin/.idx`, `NAME-00001...`; a shard is closed by the chunk that fills it."""

    def __init__(
        self, folder: Path, work: Path, name: str, dtype: np.dtype[np.generic], shard_tokens: int, state: SplitState
    ) -> None:
        """Begin at `state`; where that has an open shard, its files hold what the state tells, and no more."""
        self._folder, self._name, self._dtype, self._shard_tokens = folder, name, dtype, shard_tokens
        self._finished = list(state.finished)
        self._counts = state.counts
        self._bin: BinaryIO | None = None
        self._lengths_path = work / f"{name}.lengths"
        self._lengths_file: BinaryIO | None = None
        self._open_bytes, self._open_documents, self._checksum = 0, 0, blake2b(digest_size=16)
        if state.open_bytes:
            with (folder / f"{self._stem()}.bin").open("rb") as stream:
                while block := stream.read(1 << 20):
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
        """Append the documents of one chunk; whether this closed a shard.

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
        """Finish the open shard, if any, and see it onto the disk."""
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
        self._open_bytes, self._open_documents, self._checksum = 0, 0, blake2b(digest_size=16)

    def _sync(self) -> None:
        for stream in (self._bin, self._lengths_file):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())

    def state(self) -> SplitState:
        """How far this split is on the disk, seen to be there."""
        self._sync()
        checksum = self._checksum.hexdigest() if self._open_bytes else ""
        return SplitState(tuple(self._finished), self._open_bytes, self._open_documents, checksum, self._counts)

    def abandon(self) -> None:
        """Let go of the open files without finishing them."""
        for stream in (self._bin, self._lengths_file):
            if stream is not None:
                # After a full disk even closing fails; what matters was committed.
                try:
                    stream.close()
                except OSError:
                    continue
        self._bin, self._lengths_file = None, None


def is_as_committed(folder: Path, work: Path, name: str, state: SplitState) -> bool:
    """Whether every finished file of a split is whole, by checksum, and the open one holds what was committed."""
    for record in state.finished:
        file = folder / record.name
        if not file.is_file() or file.stat().st_size != record.bytes or file_checksum(file) != record.blake2b:
            return False
    if not state.open_bytes:
        return True
    bin_file, lengths_file = folder / f"{name}-{len(state.finished) // 2:05d}.bin", work / f"{name}.lengths"
    if not bin_file.is_file() or not lengths_file.is_file():
        return False
    return (
        lengths_file.stat().st_size >= 4 * state.open_documents
        and bin_file.stat().st_size >= state.open_bytes
        and _prefix_checksum(bin_file, state.open_bytes) == state.open_checksum
    )


def cut_to_commit(folder: Path, work: Path, name: str, state: SplitState) -> None:
    """Bring a split's files to what was committed: leave no later shard, and of the open one what was committed."""
    stem = f"{name}-{len(state.finished) // 2:05d}"
    kept = {record.name for record in state.finished} | ({f"{stem}.bin"} if state.open_bytes else set())
    for file in folder.glob(f"{name}-*"):
        if file.name not in kept:
            file.unlink()
    if state.open_bytes:
        keep_prefix(folder / f"{stem}.bin", state.open_bytes)
        keep_prefix(work / f"{name}.lengths", 4 * state.open_documents)


def _prefix_checksum(file: Path, length: int) -> str:
    digest = blake2b(digest_size=16)
    with file.open("rb") as stream:
        while length and (block := stream.read(min(length, 1 << 20))):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()
