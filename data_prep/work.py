"""What a worker does with one chunk: decode, clean, encode. A pure function, wherever it runs."""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import CorpusSettings, Encoding
from data_prep.chunks import ByteChunk, Chunk
from data_prep.cleaning import Cleaned, Cleaner
from data_prep.decode import bytes_of, count_lines, documents_of
from data_prep.duplicates import DIGEST_BYTES, PERMUTATIONS, signatures_of
from data_prep.encode import Encoder, load_encoder
from data_prep.faults import Cause, Fault, count_fault
from data_prep.heartbeat import start_of
from data_prep.sources import SourceFile

WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """What is the same for every chunk of a file."""

    file: SourceFile
    encoding: Encoding
    corpus: CorpusSettings
    tokenizer_folder: str
    tokenizer: str
    """The tokenizer's checksum, so that a long-lived worker never encodes with one that was replaced."""
    held_out: float
    dtype: str


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
    held_out: NDArray[np.bool_]
    """Whether each document belongs to the held-out part."""
    digests: NDArray[np.uint8]
    """(documents, 16), or (0, 16) where nobody asked for exact duplicates."""
    signatures: NDArray[np.uint32]
    """(documents, 128), or (0, 128) where nobody asked for near ones."""
    lines: int
    """Line ends or rows of the chunk."""
    fault: Fault | None
    """The first fault, where `on_error` is stop."""
    skipped: Counter[Cause]
    cleaned: Counter[Cleaned]
    cut: int
    slow_encoder: str
    """What encoded, where it was not the fast path; see `Encoder.slow_name`."""


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out part: a function of its text alone, so that growing the
    corpus moves no document from one side to the other."""
    return is_encoded_held_out(text.encode(), share)


def is_encoded_held_out(text: bytes, share: float) -> bool:
    """`is_held_out` of a text in UTF-8."""
    if not share:
        return False
    position = int.from_bytes(blake2b(text, digest_size=8, person=b"held-out").digest(), "big")
    return position < share * 2**64


@lru_cache(maxsize=2)
def _encoder(folder: str, checksum: str) -> Encoder:
    """The worker's own encoder, loaded once."""
    return load_encoder(Path(folder))[0]


def encode_chunk(job: Job, chunk: Chunk) -> EncodedChunk:
    """Read, clean and encode one chunk.

    Raises:
        BadInput: the tokenizer cannot be loaded.
    """
    corpus, cleaner = job.corpus, Cleaner(job.corpus)
    data = bytes_of(chunk, job.file) if isinstance(chunk, ByteChunk) else b""
    texts: list[str] = []
    encoded: list[bytes] = []
    first: Fault | None = None
    skipped: Counter[Cause] = Counter()
    cut = 0
    for found in documents_of(chunk, data, job.file, job.encoding, corpus):
        if isinstance(found, Fault):
            if corpus.on_error == "stop":
                first = found
                break
            count_fault(skipped, found)
            continue
        cut += found.is_cut
        text = cleaner.clean(found.text)
        if text is not None:
            texts.append(text)
            encoded.append(text.encode())
    encoder = _encoder(job.tokenizer_folder, job.tokenizer)
    ids, lengths = encoder.encode(texts)
    exact, near = corpus.cleaning.exact_duplicates, corpus.cleaning.near_duplicates
    digests = b"".join(blake2b(text, digest_size=DIGEST_BYTES).digest() for text in encoded) if exact else b""
    return EncodedChunk(
        ids=ids.astype(job.dtype, copy=False),
        lengths=lengths.astype(np.int32),
        bytes=np.fromiter(map(len, encoded), np.int32, len(encoded)),
        characters=np.fromiter(map(len, texts), np.int32, len(texts)),
        held_out=np.fromiter((is_encoded_held_out(text, job.held_out) for text in encoded), np.bool_, len(encoded)),
        digests=np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES),
        signatures=signatures_of(texts) if near else np.zeros((0, PERMUTATIONS), np.uint32),
        lines=count_lines(data) if isinstance(chunk, ByteChunk) else len(chunk.values),
        fault=first,
        skipped=skipped,
        cleaned=cleaner.counts,
        cut=cut,
        slow_encoder=encoder.slow_name,
    )


def begin_worker(builder: int, started: str | None) -> None:
    """Set up a worker process: one thread of its own, and an end when the builder ends, even by SIGKILL.

    Args:
        builder: its process number.
        started: its `start_of`, so that a number used again is told apart.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def watch() -> None:
        # Not the parent's end: the parent is a fork server, which lives as long as its workers do.
        while start_of(builder) == started:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
