"""Files as they were written: the size and checksum of each, and whether a folder still holds them unchanged."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

DIGEST_BYTES = 16
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written."""

    name: str
    """Path relative to the folder that keeps the record."""
    bytes: int
    blake2b: str
    """See `file_checksum`."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a folder."""

    kind: str
    """`missing`, `size` or `checksum`, of a recorded file; whoever verifies more about a folder adds kinds."""
    file: Path
    message: str
    """One line: the file, what is wrong, what to do."""


def new_checksum() -> blake2b:
    """Return an empty BLAKE2b of 128 bits, to be updated with content as it is written."""
    return blake2b(digest_size=DIGEST_BYTES)


def checksum(content: bytes) -> str:
    """Return the BLAKE2b of `content`, 128 bits, in hexadecimal."""
    return blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def stream_checksum(stream: BinaryIO, length: int | None = None) -> str:
    """Return the `checksum` of what `stream` holds from here on, or of its next `length` bytes."""
    digest, left = new_checksum(), length
    while block := stream.read(READ_BYTES if left is None else min(left, READ_BYTES)):
        digest.update(block)
        left = None if left is None else left - len(block)
    return digest.hexdigest()


def file_checksum(file: Path, length: int | None = None) -> str:
    """Return the `checksum` of a file's content, or of its first `length` bytes."""
    with file.open("rb") as stream:
        return stream_checksum(stream, length)


def file_record(file: Path, name: str | None = None) -> FileRecord:
    """Return the record of a file as it is on disk now, under `name` or its own."""
    return FileRecord(name or file.name, file.stat().st_size, file_checksum(file))


def file_findings(
    folder: Path, records: Iterable[FileRecord], remedy: str, checksums: bool = True
) -> Iterator[Finding]:
    """Yield what is wrong with the recorded files of `folder`, in the records' order.

    Args:
        remedy: what to do about a folder of this kind, the end of each message.
        checksums: read every byte. Otherwise only presence and sizes are compared.
    """
    for record in records:
        file = folder / record.name
        if not file.is_file():
            yield Finding("missing", file, f"{file}: missing; {remedy}")
        elif (size := file.stat().st_size) != record.bytes:
            message = f"{file}: {size} bytes, recorded with {record.bytes}; {remedy}"
            yield Finding("size", file, message)
        elif checksums and file_checksum(file) != record.blake2b:
            message = f"{file}: its content changed since it was written; {remedy}"
            yield Finding("checksum", file, message)


def file_errors(folder: Path, records: Iterable[FileRecord], remedy: str) -> list[str]:
    """Return the messages of `file_findings`. Every byte is read."""
    return [finding.message for finding in file_findings(folder, records, remedy)]
