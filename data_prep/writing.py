"""The build itself: chunks out to the workers, encoded chunks back in order and onto the disk."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import BadInput
from configs.schema import CorpusSettings, ShardSettings
from data_prep.chunks import ByteChunk, Chunk, Position, RowChunk, chunks_of
from data_prep.cleaning import Cleaned
from data_prep.commits import Commit, take_over_commit, write_commit
from data_prep.corpus import fault_place
from data_prep.duplicates import Duplicates
from data_prep.engines import Engine, open_engine
from data_prep.faults import causes_of, check_share
from data_prep.fingerprint import require_unchanged
from data_prep.heartbeat import Heartbeat, Progress
from data_prep.manifest import Manifest, Split, write_manifest
from data_prep.once import WORK
from data_prep.shards import token_dtype
from data_prep.sources import SourceFile
from data_prep.space import FULL, check_space, full_disk
from data_prep.split_writer import SplitState, SplitWriter
from data_prep.work import EncodedChunk, Job, encode_chunk

COMMIT_SECONDS = 5.0
LEFT_OUT: tuple[Cleaned, ...] = (
    "too_short",
    "too_long",
    "little_hangul",
    "emptied",
    "exact_duplicate",
    "near_duplicate",
)
"""What cleaning counts by the document; the rest are pieces of text."""

log = logging.getLogger(__name__)


def write_shards(
    files: list[SourceFile],
    stamps: Sequence[str],
    manifest: Manifest,
    corpus: CorpusSettings,
    data: ShardSettings,
    tokenizer_folder: Path,
    folder: Path,
    heartbeat: Heartbeat,
) -> None:
    """Write both splits' shards and, last, `manifest` with their counts and checksums, into `folder`.

    What an earlier process committed in `folder` is checked and kept, and the rest written from there.

    Args:
        stamps: of the files, from before `manifest.sources` were made.

    Raises:
        BadInput: a broken line where `on_error` is stop, too many of them where it is skip, no document at all,
            a file that changed, or a full disk.
        RuntimeError: a worker died.
    """
    work = folder / WORK
    build = _Build(files, stamps, manifest, corpus, data, folder, take_over_commit(folder, work), heartbeat)
    try:
        with open_engine(data, build.total_bytes) as engine:
            jobs = [
                Job(
                    file, source.encoding, corpus, str(tokenizer_folder), manifest.tokenizer, data.held_out, build.dtype
                )
                for file, source in zip(files, manifest.sources, strict=True)
            ]
            encodings = [source.encoding for source in manifest.sources]
            chunks = chunks_of(files, encodings, corpus, build.position)
            for chunk, encoded in _encoded_in_order(chunks, jobs, engine):
                build.add(chunk, encoded)
        build.finish()
    except BrokenExecutor as error:
        raise RuntimeError(
            "a worker process died, perhaps for want of memory; set data.workers lower and run again: it goes on from "
            "what is finished"
        ) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(folder, build.finished_shards) from error
    finally:
        build.abandon()


def _encoded_in_order(chunks: Iterator[Chunk], jobs: list[Job], engine: Engine) -> Iterator[tuple[Chunk, EncodedChunk]]:
    """Each chunk with its encoding, in order, never more than the engine's window in flight."""
    flying: deque[tuple[Chunk, Future[EncodedChunk]]] = deque()
    try:
        for chunk in chunks:
            flying.append((chunk, engine.executor.submit(encode_chunk, jobs[chunk.file], chunk)))
            while len(flying) >= engine.window():
                done, future = flying.popleft()
                yield done, future.result()
        while flying:
            done, future = flying.popleft()
            yield done, future.result()
    finally:
        for _, future in flying:
            future.cancel()


class _Build:
    """A build under way: what is counted and written."""

    def __init__(
        self,
        files: list[SourceFile],
        stamps: Sequence[str],
        manifest: Manifest,
        corpus: CorpusSettings,
        data: ShardSettings,
        folder: Path,
        start: Commit,
        heartbeat: Heartbeat,
    ) -> None:
        self._files, self._manifest, self._corpus, self._folder = files, manifest, corpus, folder
        self._work, self._heartbeat = folder / WORK, heartbeat
        self._stamps, self._checked_files = stamps, start.position.file
        self.position = start.position
        self._records, self._cut = start.records, start.cut
        self._skipped, self._cleaned = Counter(start.skipped), Counter(start.cleaned)
        self.dtype = token_dtype(manifest.vocab_size).str
        dtype = np.dtype(self.dtype)
        self._train = SplitWriter(folder, self._work, "train", dtype, data.shard_tokens, start.train)
        self._held_out = SplitWriter(folder, self._work, "held_out", dtype, data.shard_tokens, start.held_out)
        self._duplicates = Duplicates(corpus.cleaning, self._work, start.kept_bytes)
        self._starts = np.cumsum([0, *(source.bytes for source in manifest.sources)])
        self.total_bytes = int(self._starts[-1])
        self._committed = time.monotonic()
        self._has_checked_space = False
        self._has_told_encoder = False

    @property
    def finished_shards(self) -> int:
        """Shards that are closed and seen onto the disk."""
        return self._train.finished_shards + self._held_out.finished_shards

    def add(self, chunk: Chunk, encoded: EncodedChunk) -> None:
        """Write one chunk's documents and move on behind it."""
        if chunk.file != self.position.file:
            self.position = Position(chunk.file)
        if encoded.fault is not None:
            name = self._files[chunk.file].name
            raise BadInput(f"{fault_place(name, encoded.fault, self.position.lines)}: {encoded.fault.message}")
        if encoded.slow_encoder and not self._has_told_encoder:
            self._has_told_encoder = True
            log.info("encoded by %s; the fast path is for tokenizers that Malmoi trained", encoded.slow_encoder)
        self._records += len(encoded.lengths) + encoded.skipped.total()
        self._skipped.update(encoded.skipped)
        self._cleaned.update(encoded.cleaned)
        self._cut += encoded.cut
        kept = self._kept(encoded)
        closed = [
            writer.add(*_chosen(encoded, choice))
            for writer, choice in ((self._train, kept & ~encoded.held_out), (self._held_out, kept & encoded.held_out))
        ]
        inside = isinstance(chunk, ByteChunk) and chunk.ends_inside
        self.position = Position(chunk.file, chunk.end, self.position.lines + encoded.lines, inside)
        if isinstance(chunk, RowChunk) and chunk.ends_file:
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
        """Bytes of the input, as stored, that lie behind; of a compressed or binary file, none before its end."""
        done = int(self._starts[self.position.file])
        file = self._files[min(self.position.file, len(self._files) - 1)]
        is_stored_as_read = file.format in ("text", "jsonl") and file.compression == "none"
        return done + self.position.offset if is_stored_as_read else done

    def _check_space(self) -> None:
        counts = [self._train.counts, self._held_out.counts]
        documents, tokens = sum(c.documents for c in counts), sum(c.tokens for c in counts)
        done = self._done_bytes()
        self._heartbeat.tell(Progress(done, self.total_bytes, documents, tokens))
        if not self._has_checked_space and done:
            self._has_checked_space = True
            check_space(self._folder, tokens * np.dtype(self.dtype).itemsize, documents, done / self.total_bytes)

    def commit(self) -> None:
        """See everything onto the disk and record that it is there.

        Raises:
            BadInput: a file changed since its content was hashed, so what was read of it is not what the shards are
                named by; the commit before this one stands.
        """
        read = slice(self._checked_files, self.position.file + 1)
        require_unchanged(self._files[read], self._stamps[read])
        self._checked_files = self.position.file
        states = (self._train.state(), self._held_out.state())
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
        for writer in (self._train, self._held_out):
            writer.close()
        self.commit()
        train, held_out = self._train.state(), self._held_out.state()
        manifest = replace(
            self._manifest,
            train=_as_split(train),
            held_out=_as_split(held_out),
            skipped=dict(sorted(self._skipped.items())),
            cleaned=dict(sorted(self._cleaned.items())),
            cut=self._cut,
            files=tuple(sorted(train.finished + held_out.finished, key=lambda record: record.name)),
        )
        check_skipped(manifest, self._corpus)
        if not train.counts.documents + held_out.counts.documents:
            raise self._no_document()
        write_manifest(manifest, self._folder)

    def _no_document(self) -> BadInput:
        cleaned = {reason: self._cleaned[reason] for reason in LEFT_OUT if self._cleaned[reason]}
        if cleaned:
            return BadInput(f"cleaning left no document ({causes_of(cleaned)}); change corpus.cleaning")
        if self._skipped:
            return BadInput(f"the corpus holds no document but broken records ({causes_of(self._skipped)}); mend it")
        return BadInput("the corpus holds no document: every file is empty or blank; name files that hold text")

    def abandon(self) -> None:
        """Let go of the files."""
        self._train.abandon()
        self._held_out.abandon()
        self._duplicates.close()


def _chosen(
    encoded: EncodedChunk, choice: NDArray[np.bool_]
) -> tuple[NDArray[np.generic], NDArray[np.int32], int, int]:
    """The chosen documents' ids, lengths, and sums of bytes and characters."""
    if choice.all():
        return encoded.ids, encoded.lengths, int(encoded.bytes.sum()), int(encoded.characters.sum())
    ids = encoded.ids[np.repeat(choice, encoded.lengths)]
    return ids, encoded.lengths[choice], int(encoded.bytes[choice].sum()), int(encoded.characters[choice].sum())


def _as_split(state: SplitState) -> Split:
    stems = tuple(record.name.removesuffix(".bin") for record in state.finished if record.name.endswith(".bin"))
    return Split(stems, state.counts)


def check_skipped(manifest: Manifest, corpus: CorpusSettings) -> None:
    """See that no more of the corpus was skipped than the settings allow.

    Raises:
        BadInput: more was.
    """
    skipped = sum(manifest.skipped.values())
    if not skipped:
        return
    documents = manifest.train.counts.documents + manifest.held_out.counts.documents
    records = skipped + documents + sum(manifest.cleaned.get(name, 0) for name in LEFT_OUT)
    if corpus.on_error == "stop":
        raise BadInput(
            f"{skipped} broken records were skipped when these shards were built ({causes_of(manifest.skipped)}); mend "
            "them, or set corpus.on_error skip"
        )
    check_share(manifest.skipped, records, corpus.largest_skipped_share)
