"""Several machines: do they see the same disk, and do they hold the same shards? Answered without a process group."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from configs.errors import BadInput
from configs.schema import SharedFilesystem
from data_prep.files import write_whole
from data_prep.manifest import MANIFEST_FILE

PROMISED_SECONDS = 60.0
"""How long a node looks for node 0's sign on a disk said to be shared; network file systems show new files late."""
POLL_SECONDS = 0.1
OLD_SECONDS = 86_400.0


@dataclass(frozen=True)
class Node:
    """Which of a run's machines this is."""

    number: int
    count: int
    nonce: str
    """The same on all nodes of one start of the run, and on no other."""


def this_node(environment: Mapping[str, str] = os.environ) -> Node:
    """Where this process runs, as torchrun, accelerate or Slurm tell it; alone where none does."""
    ranks, local = int(environment.get("WORLD_SIZE", 1)), int(environment.get("LOCAL_WORLD_SIZE", 0))
    if "SLURM_NODEID" in environment:
        number, count = int(environment["SLURM_NODEID"]), int(environment.get("SLURM_NNODES", 1))
    elif local:
        number, count = int(environment.get("RANK", 0)) // local, max(1, ranks // local)
    else:
        number, count = 0, 1
    names = (
        "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
        "MASTER_ADDR", "MASTER_PORT",
    )  # fmt: skip
    parts = "|".join(environment.get(name, "") for name in names)
    return Node(number, count, hashlib.blake2b(parts.encode(), digest_size=8).hexdigest())


def may_build(out: Path, setting: SharedFilesystem, node: Node) -> bool:
    """Whether this node builds, or waits for node 0, which writes to the same disk.

    Unless the disk was said to be shared, every node may: on a shared one the lock lets one build, and another goes
    on should that one die; on disks of their own each builds.

    Raises:
        BadInput: the disk was said to be shared and is not.
    """
    if node.count == 1 or setting is not True:
        return True
    sign = out / f".seen-by-all-{node.nonce}"
    if node.number == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(sign, b"", durable=False)
        _delete_old_signs(sign)
        return True
    if not _appears(sign, PROMISED_SECONDS):
        raise BadInput(
            f"{out}: data.shared_filesystem is true, but node {node.number} does not see what node 0 writes there; "
            "set it to auto, or data.cache to a shared folder"
        )
    return False


def _delete_old_signs(sign: Path) -> None:
    """Delete what earlier starts left beside `sign`, by the file system's own clock."""
    now = sign.stat().st_mtime
    for old in sign.parent.glob(".seen-by-all-*"):
        with suppress(OSError):
            if now - old.stat().st_mtime > OLD_SECONDS:
                old.unlink()


def _appears(file: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        # Listing the folder, unlike asking for the file, makes NFS look again.
        if file.parent.is_dir() and file.name in os.listdir(file.parent):  # noqa: PTH208 - one listing
            return True
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)


def manifest_hash(folder: Path) -> str:
    """128 bits over a shard folder's manifest, and so over every byte of the folder."""
    return hashlib.blake2b((folder / MANIFEST_FILE).read_bytes(), digest_size=16).hexdigest()


def require_agreement(hashes: Sequence[str]) -> None:
    """See that every rank holds the same shards, given each rank's `manifest_hash`.

    Raises:
        BadInput: they do not.
    """
    others = [rank for rank, found in enumerate(hashes) if found != hashes[0]]
    if others:
        raise BadInput(
            f"rank {others[0]} holds other shards than rank 0 ({len(others)} of {len(hashes)} ranks differ): give "
            "every node the same corpus, tokenizer and settings, and prepare again"
        )
