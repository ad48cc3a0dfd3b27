"""The way of a document from file to shard.

`write_shards` cuts the files into chunks, lets workers run `encode_chunk` on each, and writes the results in order.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from malmoi.configs.data import ShardSettings
from malmoi.data_prep.filters.cleaning import DROPPED
from malmoi.data_prep.filters.dedup import Duplicates
from malmoi.data_prep.pipeline.build_once import WORK
from malmoi.data_prep.pipeline.encode_chunk import EncodedChunk, EncodeJob, encode_chunk
from malmoi.data_prep.pipeline.executors import Workers, open_workers
from malmoi.data_prep.pipeline.fingerprint import require_unchanged
from malmoi.data_prep.pipeline.heartbeat import Heartbeat, Progress
from malmoi.data_prep.pipeline.resume_state import Commit, restore_commit, write_commit
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.chunks import ByteChunk, Chunk, Position, RecordChunk, chunks_of
from malmoi.data_prep.readers.errors import counts_by_name, error_place
from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.data_prep.readers.sources import names_for_message
from malmoi.data_prep.shards.manifest import Manifest, check_skipped, write_manifest
from malmoi.data_prep.shards.writer import SplitWriter
from malmoi.disk_space import FULL, check_space, full_disk
from malmoi.errors import RunFailed, UserError

COMMIT_SECONDS = 5.0

log = logging.getLogger(__name__)


def write_shards(
    files: Sequence[SourceFile],
    stamps: Sequence[str],
    manifest: Manifest,
    job: EncodeJob,
    data: ShardSettings,
    folder: Path,
    heartbeat: Heartbeat,
) -> None:
    """Write both splits' shards and, last, `manifest` with their counts and checksums, into `folder`.

    What an earlier process committed in `folder` is checked and kept, and the build resumed from there.

    Args:
        files: with their encodings.
        stamps: of the files, from before `manifest.sources` were made.

    Raises:
        UserError: a broken line where `on_error` is stop, too many of them where it is skip, no document at all,
            a file that changed, or a full disk.
        RunFailed: a worker died.
    """
    build = _Build(files, stamps, manifest, job, data, folder, heartbeat)
    try:
        with open_workers(data, build.total_bytes) as workers:
            chunks = chunks_of(files, job.corpus, build.position)
            for chunk, encoded in _encoded_in_order(chunks, files, job, workers):
                build.add(chunk, encoded)
        build.finish()
    except BrokenExecutor as error:
        raise RunFailed(
            "a worker process died, perhaps for want of memory; set data.workers lower and run again to resume from "
            "what is finished"
        ) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(folder, build.finished_shards) from error
    finally:
        build.abandon()


def _encoded_in_order(
    chunks: Iterator[Chunk], files: Sequence[SourceFile], job: EncodeJob, workers: Workers
) -> Iterator[tuple[Chunk, EncodedChunk]]:
    """Yield each chunk with its encoding, in order, never more than the workers' window in flight."""
    in_flight: deque[tuple[Chunk, Future[EncodedChunk]]] = deque()
    try:
        for chunk in chunks:
            in_flight.append((chunk, workers.executor.submit(encode_chunk, job, files[chunk.file], chunk)))
            while len(in_flight) >= workers.window():
                done, future = in_flight.popleft()
                yield done, future.result()
        while in_flight:
            done, future = in_flight.popleft()
            yield done, future.result()
    finally:
        for _, future in in_flight:
            future.cancel()


class _Build:
    """A build in progress: what is counted, written and committed."""

    def __init__(
        self,
        files: Sequence[SourceFile],
        stamps: Sequence[str],
        manifest: Manifest,
        job: EncodeJob,
        data: ShardSettings,
        folder: Path,
        heartbeat: Heartbeat,
    ) -> None:
        """Begin with what an earlier process committed in `folder`."""
        self._files, self._manifest, self._corpus, self._folder = files, manifest, job.corpus, folder
        self._work, self._heartbeat = folder / WORK, heartbeat
        start = restore_commit(folder, self._work)
        self._stamps, self._checked_files = list(stamps), start.position.file
        self.position = start.position
        self._records, self._cut = start.records, start.cut
        self._skipped, self._cleaned = Counter(start.skipped), Counter(start.cleaned)
        self._dtype = np.dtype(job.dtype)
        self._train = SplitWriter(folder, self._work, "train", self._dtype, data.shard_tokens, start.train)
        self._val = SplitWriter(folder, self._work, "val", self._dtype, data.shard_tokens, start.val)
        self._duplicates = Duplicates(job.corpus.cleaning, self._work, start.kept_bytes)
        self._starts = np.cumsum([0, *(source.bytes for source in manifest.sources)])
        self.total_bytes = int(self._starts[-1])
        self._committed = time.monotonic()
        self._has_checked_space = False
        self._has_logged_encoder = False

    @property
    def finished_shards(self) -> int:
        """Shards that are closed and flushed to the disk."""
        return self._train.finished_shards + self._val.finished_shards

    def add(self, chunk: Chunk, encoded: EncodedChunk) -> None:
        """Write one chunk's documents and move the position behind it."""
        if chunk.file != self.position.file:
            self.position = Position(chunk.file)
        if encoded.error is not None:
            place = error_place(self._files[chunk.file], encoded.error, self.position.lines)
            raise UserError(f"{place}: {encoded.error.message}")
        if encoded.slow_encoder and not self._has_logged_encoder:
            self._has_logged_encoder = True
            log.info("encoded by %s; the fast path is for tokenizers that Malmoi trained", encoded.slow_encoder)
        self._records += len(encoded.lengths) + encoded.skipped.total()
        self._skipped.update(encoded.skipped)
        self._cleaned.update(encoded.cleaned)
        self._cut += encoded.cut
        kept = self._kept(encoded)
        closed = [
            writer.add(*_chosen(encoded, choice))
            for writer, choice in ((self._train, kept & ~encoded.val), (self._val, kept & encoded.val))
        ]
        inside = isinstance(chunk, ByteChunk) and chunk.ends_inside
        self.position = Position(chunk.file, chunk.end, self.position.lines + encoded.lines, inside)
        if isinstance(chunk, RecordChunk) and chunk.ends_file:
            self.position = Position(chunk.file + 1)
        self._check_space()
        if any(closed) or time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def _kept(self, encoded: EncodedChunk) -> NDArray[np.bool_]:
        kept = np.ones(len(encoded.lengths), dtype=np.bool_)
        for row, reason in enumerate(self._duplicates.reasons(encoded.digests, encoded.signatures)):
            if reason is not None:
                kept[row] = False
                self._cleaned[reason] += 1
        return kept

    def _done_bytes(self) -> int:
        """Return the bytes of the input, as stored, that are done; of a file whose offset is not in these, none before
        its end."""
        done = int(self._starts[self.position.file])
        file = self._files[min(self.position.file, len(self._files) - 1)]
        is_offset_of_stored = READERS[file.suffix].lines is not None and file.is_read_as_stored
        return done + self.position.offset if is_offset_of_stored else done

    def _check_space(self) -> None:
        counts = [self._train.counts, self._val.counts]
        documents, tokens = sum(c.documents for c in counts), sum(c.tokens for c in counts)
        done = self._done_bytes()
        self._heartbeat.report(Progress(done, self.total_bytes, documents, tokens))
        if not self._has_checked_space and done:
            self._has_checked_space = True
            check_space(self._folder, tokens * self._dtype.itemsize, documents, done / self.total_bytes)

    def commit(self) -> None:
        """Flush everything to the disk and record that it is there.

        Raises:
            UserError: a file changed since its content was hashed, so what was read of it is not what the shards are
                named by; the commit before this one is kept.
        """
        read = slice(self._checked_files, self.position.file + 1)
        self._stamps[read] = require_unchanged(self._files[read], self._stamps[read], self._manifest.sources[read])
        self._checked_files = self.position.file
        states = (self._train.state(), self._val.state())
        kept_bytes = self._duplicates.state()
        write_commit(
            Commit(
                self.position, *states, self._records, dict(self._skipped), dict(self._cleaned), self._cut, kept_bytes
            ),
            self._work,
        )
        self._committed = time.monotonic()

    def finish(self) -> None:
        """Close the last shards and write the manifest."""
        if not self._records:
            raise self._no_document()
        for writer in (self._train, self._val):
            writer.close()
        self.commit()
        train, val = self._train.state(), self._val.state()
        manifest = replace(
            self._manifest,
            train=train.as_split(),
            val=val.as_split(),
            skipped=dict(sorted(self._skipped.items())),
            cleaned=dict(sorted(self._cleaned.items())),
            cut=self._cut,
            files=tuple(sorted(train.finished + val.finished, key=lambda record: record.name)),
        )
        check_skipped(manifest, self._corpus)
        if not train.counts.documents + val.counts.documents:
            raise self._no_document()
        write_manifest(manifest, self._folder)

    def _no_document(self) -> UserError:
        place = names_for_message([file.name for file in self._files])
        cleaned = {reason: self._cleaned[reason] for reason in DROPPED if self._cleaned[reason]}
        if cleaned:
            return UserError(f"{place}: cleaning left no document ({counts_by_name(cleaned)}); change corpus.cleaning")
        if self._skipped:
            causes = counts_by_name(self._skipped)
            return UserError(f"{place}: no document but broken records ({causes}); fix them")
        return UserError(f"{place}: no document, all is empty or blank; name files that hold text")

    def abandon(self) -> None:
        """Close the files."""
        self._train.abandon()
        self._val.abandon()
        self._duplicates.close()


def _chosen(
    encoded: EncodedChunk, choice: NDArray[np.bool_]
) -> tuple[NDArray[np.generic], NDArray[np.int32], int, int]:
    """Return the chosen documents' ids, lengths, and sums of bytes and characters."""
    if choice.all():
        return encoded.ids, encoded.lengths, int(encoded.bytes.sum()), int(encoded.characters.sum())
    ids = encoded.ids[np.repeat(choice, encoded.lengths)]
    return ids, encoded.lengths[choice], int(encoded.bytes[choice].sum()), int(encoded.characters[choice].sum())
