"""Several nodes: whether they see the same disk, and hold the same shards. Decided without a process group."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from malmoi.atomic_io import write_atomic
from malmoi.checksums import file_checksum
from malmoi.configs.data import SharedFilesystem
from malmoi.data_prep.shards.manifest import MANIFEST_FILE
from malmoi.errors import UserError
from malmoi.ranks import launched_ranks, whole_number

PROMISED_SECONDS = 60.0
"""How long a node waits for node 0's mark on a disk said to be shared; network file systems show new files late."""
POLL_SECONDS = 0.1
OLD_SECONDS = 86_400.0


@dataclass(frozen=True)
class Node:
    """Which of a run's nodes this is."""

    number: int
    count: int
    nonce: str
    """The same on all nodes of one start of the run, and on no other."""


def this_node(environment: Mapping[str, str] = os.environ) -> Node:
    """Return the node of this process, by the variables of torchrun, accelerate or Slurm; the only one without any.

    Raises:
        UserError: one of them holds no number.
    """
    ranks = launched_ranks(environment)
    if "SLURM_NODEID" in environment:
        number, count = whole_number(environment, "SLURM_NODEID", 0), whole_number(environment, "SLURM_NNODES", 1)
    elif ranks.local_count:
        number, count = ranks.rank // ranks.local_count, max(1, ranks.count // ranks.local_count)
    else:
        number, count = 0, 1
    names = (
        "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
        "MASTER_ADDR", "MASTER_PORT",
    )  # fmt: skip
    parts = "|".join(environment.get(name, "") for name in names)
    return Node(number, count, hashlib.blake2b(parts.encode(), digest_size=8).hexdigest())


def may_build(out: Path, setting: SharedFilesystem, node: Node) -> bool:
    """Return whether this node builds, or waits for node 0, which writes to the same disk.

    Unless the disk was said to be shared, every node may: on a shared one the lock lets one build, and another resumes
    should that one die; on disks of their own each builds.

    Raises:
        UserError: the disk was said to be shared and is not.
    """
    if node.count == 1 or setting is not True:
        return True
    mark = out / f".seen-by-all-{node.nonce}"
    if node.number == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, b"", durable=False)
        _delete_old_marks(mark)
        return True
    if not _appears(mark, PROMISED_SECONDS):
        raise UserError(
            f"{out}: data.shared_filesystem is true, but node {node.number} does not see what node 0 writes there; "
            "set it to auto, or data.cache to a shared folder"
        )
    return False


def _delete_old_marks(mark: Path) -> None:
    """Delete marks of earlier starts beside `mark`, by the file system's own clock."""
    now = mark.stat().st_mtime
    for old in mark.parent.glob(".seen-by-all-*"):
        with suppress(OSError):
            if now - old.stat().st_mtime > OLD_SECONDS:
                old.unlink()


def _appears(file: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        # Listing the folder, unlike a lookup of the file, makes NFS refresh its cache.
        if file.parent.is_dir() and file.name in os.listdir(file.parent):  # noqa: PTH208 - one listing
            return True
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)


def manifest_hash(folder: Path) -> str:
    """Return the checksum of a shard folder's manifest, and so of every byte of the folder."""
    return file_checksum(folder / MANIFEST_FILE)


def require_agreement(hashes: Sequence[str]) -> None:
    """Check that every rank holds the same shards, given each rank's `manifest_hash`.

    Raises:
        UserError: they do not.
    """
    others = [rank for rank, found in enumerate(hashes) if found != hashes[0]]
    if others:
        raise UserError(
            f"rank {others[0]} holds other shards than rank 0 ({len(others)} of {len(hashes)} ranks differ): give "
            "every node the same corpus, tokenizer and settings, and prepare again"
        )
