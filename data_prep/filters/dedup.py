"""Documents that were read before, exactly or nearly: decided in reading order, so the outcome is one."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from malmoi.atomic_io import keep_prefix
from malmoi.configs.corpus import CleaningSettings
from malmoi.data_prep.filters.cleaning import Cleaned
from malmoi.errors import UserError

DIGEST_BYTES = 16
PERMUTATIONS = 128
SHINGLE_WORDS = 5
SCHEME = "affine32"
"""Named, so that another version's default does not change which documents are kept."""
WORD = re.compile(r"\w+")
KEPT_FILE = "kept.hashes"


def signatures_of(texts: list[str]) -> NDArray[np.uint32]:
    """Return MinHash signatures over each text's runs of five words; of a shorter text, over all of it.

    Returns:
        u32, (texts, 128).
    """
    minhash = _datasketch().MinHash
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for row, text in enumerate(texts):
        words = WORD.findall(text) or [text]
        last = max(1, len(words) - SHINGLE_WORDS + 1)
        shingles = {" ".join(words[start : start + SHINGLE_WORDS]).encode() for start in range(last)}
        hashed = minhash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME)
        hashed.update_batch(sorted(shingles))
        signatures[row] = hashed.hashvalues
    return signatures


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise UserError(
            "corpus.cleaning.near_dedup_threshold needs datasketch: run `pip install malmoi[dedup]`, or set it to 0"
        ) from error
    return datasketch


def has_kept(work: Path, kept_bytes: int) -> bool:
    """Return whether the file of kept documents holds the bytes that a commit counts."""
    file = work / KEPT_FILE
    return not kept_bytes or (file.is_file() and file.stat().st_size >= kept_bytes)


class Duplicates:
    """The documents kept so far, in memory, and on disk for the process that resumes the build."""

    def __init__(self, settings: CleaningSettings, work: Path, kept_bytes: int) -> None:
        """Begin with the first `kept_bytes` bytes of what an earlier builder kept."""
        self._exact = settings.exact_dedup
        self._threshold = settings.near_dedup_threshold
        self._seen: set[bytes] = set()
        self._index: Any = None
        self._signatures: list[NDArray[np.uint32]] = []
        if self._threshold:
            self._index = _datasketch().MinHashLSH(threshold=self._threshold, num_perm=PERMUTATIONS)
        self._row = (DIGEST_BYTES if self._exact else 0) + (4 * PERMUTATIONS if self._threshold else 0)
        self._kept_bytes = kept_bytes
        self._file: BinaryIO | None = None
        if self._row:
            self._restore(work / KEPT_FILE, kept_bytes)

    def _restore(self, path: Path, kept_bytes: int) -> None:
        if kept_bytes:
            keep_prefix(path, kept_bytes)
        else:
            path.unlink(missing_ok=True)
        earlier = path.read_bytes() if kept_bytes else b""
        self._file = path.open("ab")
        for start in range(0, len(earlier), self._row):
            row = earlier[start : start + self._row]
            if self._exact:
                self._seen.add(row[:DIGEST_BYTES])
            if self._threshold:
                self._remember(np.frombuffer(row[-4 * PERMUTATIONS :], dtype=np.uint32))

    def _remember(self, signature: NDArray[np.uint32]) -> None:
        self._index.insert(len(self._signatures), self._minhash(signature))
        self._signatures.append(signature)

    def _minhash(self, signature: NDArray[np.uint32]) -> Any:
        return _datasketch().MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME, hashvalues=signature)

    def reasons(self, digests: NDArray[np.uint8], signatures: NDArray[np.uint32]) -> list[Cleaned | None]:
        """Return why each document of a chunk is dropped, or none where it is kept and remembered.

        Args:
            digests: (documents, 16), empty without `exact_dedup`.
            signatures: (documents, 128), empty without `near_dedup_threshold`.
        """
        found: list[Cleaned | None] = []
        for row in range(max(len(digests), len(signatures))):
            digest = digests[row].tobytes() if self._exact else b""
            if self._exact and digest in self._seen:
                found.append("exact_duplicate")
            elif self._threshold and self._has_near(signatures[row]):
                found.append("near_duplicate")
            else:
                found.append(None)
                self._keep(digest, signatures[row] if self._threshold else None)
        return found

    def _has_near(self, signature: NDArray[np.uint32]) -> bool:
        candidates: list[int] = self._index.query(self._minhash(signature))
        return any(float(np.mean(self._signatures[key] == signature)) >= self._threshold for key in candidates)

    def _keep(self, digest: bytes, signature: NDArray[np.uint32] | None) -> None:
        assert self._file is not None
        if self._exact:
            self._seen.add(digest)
        self._file.write(digest)
        if signature is not None:
            self._remember(signature)
            self._file.write(signature.tobytes())
        self._kept_bytes += self._row

    def state(self) -> int:
        """Flush what was kept to the disk, and return its bytes."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._kept_bytes

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # a full disk; everything needed was committed
                self._file.close()
            self._file = None
