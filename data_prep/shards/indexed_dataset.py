"""Megatron's indexed dataset (`.bin` and `.idx`), written and read as memory maps.

The layout is that of `megatron/core/datasets/indexed_dataset.py`: `.bin` holds the tokens, little-endian and
without a header; `.idx` holds `MMIDIDX\\0\\0`, the version, a dtype code, the number of sequences and of
documents + 1, then int32 lengths, int64 byte offsets and int64 document starts. One sequence is one document.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from malmoi.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, np.dtype[np.generic]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
LARGEST_U16_VOCABULARY = 65_500
INDEX_BLOCK = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype[np.generic]:
    """Return Megatron's choice: u16 where the vocabulary is under 65,500 ids, else i32."""
    return np.dtype("<u2") if vocab_size < LARGEST_U16_VOCABULARY else np.dtype("<i4")


def write_index(file: BinaryIO, lengths: NDArray[np.int32], dtype: np.dtype[np.generic]) -> None:
    """Write the index of a shard whose documents have `lengths` tokens, one sequence a document.

    Memory beside `lengths` does not grow with their number.
    """
    code = next(code for code, known in DTYPE_CODES.items() if known == dtype)
    count = len(lengths)
    file.write(HEADER.pack(MAGIC, VERSION, code, count, count + 1))
    file.write(lengths.astype("<i4", copy=False).data)
    end = 0
    for start in range(0, count, INDEX_BLOCK):
        ends = end + np.cumsum(lengths[start : start + INDEX_BLOCK], dtype=np.int64) * dtype.itemsize
        file.write(np.concatenate([[end], ends[:-1]]).astype("<i8").tobytes())
        end = int(ends[-1])
    for start in range(0, count + 1, INDEX_BLOCK):
        file.write(np.arange(start, min(start + INDEX_BLOCK, count + 1), dtype="<i8").tobytes())


@dataclass(frozen=True)
class MappedFile:
    """A file that is mapped, as it was when it was opened."""

    path: Path
    bytes: int
    inode: int

    def require_complete(self) -> None:
        """Check that the file did not become shorter: who reads a map beyond its file's end is killed (SIGBUS).

        Raises:
            UserError: it did.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return  # Deleted, as before a build in its place: what is mapped stays.
        if status.st_ino == self.inode and status.st_size < self.bytes:
            raise UserError(
                f"{self.path}: cut to {status.st_size} bytes of {self.bytes} while it was read; prepare again"
            )


def mapped_file(path: Path) -> MappedFile:
    """Return a file as it is now."""
    status = path.stat()
    return MappedFile(path, status.st_size, status.st_ino)


@dataclass(frozen=True)
class Shard:
    """One open shard; arrays are memory maps."""

    stem: Path
    tokens: NDArray[np.generic]
    """1-D, u16 or i32."""
    lengths: NDArray[np.int32]
    """Tokens of each document."""
    offsets: NDArray[np.int64]
    """Byte at which each document starts in `.bin`."""
    files: tuple[MappedFile, ...]
    """What the arrays are maps of."""

    def require_complete(self) -> None:
        """Check that the arrays can be read still, in microseconds: for whoever reads them for hours.

        Raises:
            UserError: a file was cut.
        """
        for file in self.files:
            file.require_complete()

    def document(self, number: int) -> NDArray[np.generic]:
        """Return the token ids of document `number`, counted from 0; 1-D, of the shard's dtype."""
        start = int(self.offsets[number]) // self.tokens.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[number])]


def open_shard(stem: Path) -> Shard:
    """Map `STEM.bin` and `STEM.idx`, whatever their size, without reading them through.

    Raises:
        UserError: a file is missing, is no MMIDIDX index, or `.bin` has not the size that the index says.
    """
    index_file, bin_file = stem.with_suffix(".idx"), stem.with_suffix(".bin")
    for file in (index_file, bin_file):
        if not file.is_file():
            raise UserError(f"{file}: missing; prepare the shards again")
    files = (mapped_file(index_file), mapped_file(bin_file))
    index = np.memmap(index_file, dtype=np.uint8, mode="r")
    if len(index) < HEADER.size:
        raise UserError(f"{index_file}: {len(index)} bytes are no index; prepare the shards again")
    magic, version, code, count, documents = HEADER.unpack(index[: HEADER.size].tobytes())
    if magic != MAGIC or version != VERSION or code not in DTYPE_CODES:
        raise UserError(f"{index_file}: no index of Megatron's format, version 1, of u16 or i32 tokens")
    if len(index) != HEADER.size + 12 * count + 8 * documents:
        raise UserError(f"{index_file}: {len(index)} bytes, which is not the index of {count} documents; prepare again")
    dtype = DTYPE_CODES[code]
    lengths = np.ndarray(count, dtype="<i4", buffer=index, offset=HEADER.size)
    offsets = np.ndarray(count, dtype="<i8", buffer=index, offset=HEADER.size + 4 * count)
    expected = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize if count else 0
    size = files[1].bytes
    if size != expected:
        raise UserError(f"{bin_file}: {size} bytes, but its index says {expected}; prepare the shards again")
    tokens = np.memmap(bin_file, dtype=dtype, mode="r") if size else np.zeros(0, dtype=dtype)
    return Shard(stem, tokens, lengths, offsets, files)
