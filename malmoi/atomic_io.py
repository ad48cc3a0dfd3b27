"""Files that are complete or absent: written beside, flushed to the disk, renamed into place."""

import os
from pathlib import Path
from uuid import uuid4


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(file: Path, content: bytes, durable: bool = True) -> None:
    """Replace `file` in one step, so that a reader sees the old content or the new one.

    Args:
        durable: flush it to the disk before the step; not needed for what only informs.
    """
    temporary = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(file.parent)


def keep_prefix(file: Path, length: int) -> None:
    """Replace `file` in one step by a copy of its first `length` bytes, flushed to the disk.

    A copy, because a builder that was wrongly thought dead may still write into the file that it has open.
    """
    copy = file.with_name(f"{file.name}.copy")
    with file.open("rb") as source, copy.open("wb") as target:
        while length and (block := source.read(min(length, 1 << 20))):
            target.write(block)
            length -= len(block)
        target.flush()
        os.fsync(target.fileno())
    copy.replace(file)
    fsync_path(file.parent)
