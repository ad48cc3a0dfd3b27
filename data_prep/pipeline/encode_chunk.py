"""What a worker does with a chunk of a file: read, clean, encode."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.filters.cleaning import Cleaned, Cleaner
from malmoi.data_prep.filters.decontamination import EvaluationRuns, evaluation_runs
from malmoi.data_prep.filters.dedup import DIGEST_BYTES, PERMUTATIONS, signatures_of
from malmoi.data_prep.readers.chunks import Chunk, bytes_of, documents_of, line_count
from malmoi.data_prep.readers.errors import Cause, RecordError, count_error
from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.data_prep.tokenizer.encode import Encoder, load_encoder
from malmoi.errors import UserError
from malmoi.plugins import load_plugins

SPLIT_KEY = b"held-out"
"""Key of the hash that decides a document's split. Part of the format: another key would move documents."""


@dataclass(frozen=True)
class EncodeJob:
    """What a worker needs to know for every chunk."""

    corpus: CorpusSettings
    tokenizer_folder: str
    tokenizer: str
    """The tokenizer's checksum, so that a long-lived worker never encodes with one that was replaced."""
    dtype: str
    """Of the shards; see `token_dtype`."""
    val_fraction: float
    plugins: tuple[str, ...]
    """Modules to import first; see `load_plugins`."""
    plugin_folder: str
    evaluation_runs: str = ""
    """Checksum of the runs of evaluation data, where documents that hold some are looked for."""


@dataclass(frozen=True)
class EncodedChunk:
    """One chunk's documents, encoded, in order."""

    ids: NDArray[Any]
    """1-D, of the shards' dtype: the tokens of all documents, end to end."""
    lengths: NDArray[np.int32]
    """Tokens of each document."""
    bytes: NDArray[np.int32]
    """UTF-8 bytes of each document's text."""
    characters: NDArray[np.int32]
    val: NDArray[np.bool_]
    """Whether each document belongs to the validation split."""
    digests: NDArray[np.uint8]
    """(documents, 16), or (0, 16) without `exact_dedup`."""
    signatures: NDArray[np.uint32]
    """(documents, 128), or (0, 128) without `near_dedup_threshold`."""
    lines: int
    """Line ends or records of the chunk."""
    error: RecordError | None
    """The first record error, where `on_error` is stop."""
    skipped: Counter[Cause]
    cleaned: Counter[Cleaned]
    cut: int
    slow_encoder: str
    """What encoded, where it was not the fast path; see `Encoder.slow_name`."""


def is_validation(text: bytes, fraction: float) -> bool:
    """Return whether a document belongs to the validation split: a function of its text alone, so that growing the
    corpus moves no document from one split to the other.

    Args:
        text: in UTF-8.
    """
    if not fraction:
        return False
    position = int.from_bytes(blake2b(text, digest_size=8, person=SPLIT_KEY).digest(), "big")
    return position < fraction * 2**64


@lru_cache(maxsize=2)
def _encoder(folder: str, checksum: str) -> Encoder:
    """Return the worker's own encoder, loaded once."""
    return load_encoder(Path(folder))[0]


@lru_cache(maxsize=1)
def _evaluation_runs(files: tuple[str, ...], length: int, checksum: str) -> EvaluationRuns:
    """Return the worker's own runs of evaluation data, read once.

    Raises:
        UserError: they are not those of the checksum, which were found when the build began.
    """
    runs = evaluation_runs(files, length)
    if runs.checksum != checksum:
        raise UserError(f"{', '.join(files)}: changed while the shards were built; build them again")
    return runs


def _without_contaminated(
    job: EncodeJob, texts: list[str], encoded: list[bytes], counts: Counter[Cleaned]
) -> tuple[list[str], list[bytes]]:
    """Return what is kept of the documents, those that hold evaluation data counted."""
    cleaning = job.corpus.cleaning
    runs = _evaluation_runs(cleaning.decontaminate, cleaning.decontaminate_run, job.evaluation_runs)
    found = runs.found_in(texts)
    if cleaning.decontaminate_action == "report":
        counts["contaminated_kept"] += int(found.sum())
        return texts, encoded
    kept: list[str | None] = list(texts)
    for row in np.flatnonzero(found).tolist():
        kept[row] = None
        if cleaning.decontaminate_action == "cut":
            kept[row], lines = runs.cut_from(texts[row])
            counts["contaminated_line"] += 0 if kept[row] is None else lines
        counts["contaminated"] += kept[row] is None
    left = [text for text in kept if text is not None]
    return left, [text.encode() for text in left]


def encode_chunk(job: EncodeJob, file: SourceFile, chunk: Chunk) -> EncodedChunk:
    """Read, clean and encode one chunk: a pure function, wherever it runs.

    Raises:
        UserError: the tokenizer or a plugin cannot be loaded.
    """
    load_plugins(job.plugins, job.plugin_folder)
    corpus, cleaner = job.corpus, Cleaner(job.corpus)
    data = bytes_of(chunk, file)
    texts: list[str] = []
    encoded: list[bytes] = []
    first: RecordError | None = None
    skipped: Counter[Cause] = Counter()
    cut = 0
    for found in documents_of(chunk, data, file, corpus):
        if isinstance(found, RecordError):
            if corpus.on_error == "stop":
                first = found
                break
            count_error(skipped, found)
            continue
        cut += found.is_cut
        text = cleaner.clean(found.text)
        if text is not None:
            texts.append(text)
            encoded.append(text.encode())
    if corpus.cleaning.decontaminate:
        texts, encoded = _without_contaminated(job, texts, encoded, cleaner.counts)
    encoder = _encoder(job.tokenizer_folder, job.tokenizer)
    ids, lengths = encoder.encode(texts)
    exact, near = corpus.cleaning.exact_dedup, corpus.cleaning.near_dedup_threshold
    digests = b"".join(blake2b(text, digest_size=DIGEST_BYTES).digest() for text in encoded) if exact else b""
    return EncodedChunk(
        ids=ids.astype(job.dtype, copy=False),
        lengths=lengths.astype(np.int32),
        bytes=np.fromiter(map(len, encoded), np.int32, len(encoded)),
        characters=np.fromiter(map(len, texts), np.int32, len(texts)),
        val=np.fromiter((is_validation(text, job.val_fraction) for text in encoded), np.bool_, len(encoded)),
        digests=np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES),
        signatures=signatures_of(texts) if near else np.zeros((0, PERMUTATIONS), np.uint32),
        lines=line_count(chunk, data),
        error=first,
        skipped=skipped,
        cleaned=cleaner.counts,
        cut=cut,
        slow_encoder=encoder.slow_name,
    )
