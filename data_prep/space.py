"""Disk space: what a build will need, told before it is written, and what to say when there is none left."""

import errno
import shutil
from pathlib import Path

from configs.errors import BadInput

FULL = (errno.ENOSPC, errno.EDQUOT)
INDEX_BYTES = 24
"""Bytes of `.idx` a document, and of the lengths kept while its shard is open."""
MARGIN = 1.05


def readable_bytes(count: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def check_space(folder: Path, output_bytes: int, documents: int, input_share: float) -> None:
    """See that the rest of a build fits, judged by a beginning that is `input_share` of the input.

    Args:
        output_bytes: tokens that the beginning gave, in bytes.
        documents: documents that it gave.

    Raises:
        BadInput: it does not fit.
    """
    needed = MARGIN * (output_bytes + INDEX_BYTES * documents) * max(0.0, 1 / input_share - 1)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BadInput(
            f"{folder.parent}: the shards need about {readable_bytes(needed)} more, and {readable_bytes(free)} are "
            "free; make room, or set data.cache to a folder on a larger disk"
        )


def full_disk(folder: Path, finished: int) -> BadInput:
    """The error for a disk that became full."""
    return BadInput(
        f"{folder.parent}: the disk is full; {finished} finished shards are kept: make room and run the same command "
        "again, and it goes on from there"
    )
