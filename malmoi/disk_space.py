"""Disk space: what a build will need, checked before it is written, and the error for a disk that is full."""

import errno
import shutil
from pathlib import Path

from malmoi.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
INDEX_BYTES = 24
"""Bytes of `.idx` a document, and of the lengths kept while its shard is open."""
MARGIN = 1.05


def readable_bytes(count: float) -> str:
    """Return a number of bytes with a unit, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def check_space(folder: Path, output_bytes: int, documents: int, input_fraction: float) -> None:
    """Check that the rest of a build fits on the disk, extrapolated from its beginning.

    Args:
        output_bytes: bytes of the tokens written so far.
        documents: documents written so far.
        input_fraction: the part of the input that gave them, in (0, 1].

    Raises:
        UserError: it does not fit.
    """
    needed = MARGIN * (output_bytes + INDEX_BYTES * documents) * max(0.0, 1 / input_fraction - 1)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder.parent}: the shards need about {readable_bytes(needed)} more, and {readable_bytes(free)} are "
            "free; make room, or set data.cache to a folder on a larger disk"
        )


def full_disk(folder: Path, finished: int) -> UserError:
    """Return the error for a disk that became full while `folder` was built, with `finished` shards."""
    return UserError(
        f"{folder.parent}: the disk is full; {finished} finished shards are kept: make room and run the same command "
        "again to resume"
    )
