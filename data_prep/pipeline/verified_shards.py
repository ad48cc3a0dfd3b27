"""Whether shards still hold every byte that was written: read through once, and again after any of them has changed.

That they were is remembered beside the folder with each file's size and times, so that a start whose shards nobody has
touched reads none of them. A copy on another disk is read through at its first start.
"""

import logging
from contextlib import suppress
from pathlib import Path

from malmoi.atomic_io import write_atomic
from malmoi.checked_json import checked_json, parse_checked_json
from malmoi.data_prep.pipeline.build_once import lock_if_possible
from malmoi.data_prep.shards.verify import DAMAGE, require_only_shards, shard_damage, verify_shards
from malmoi.ranks import is_main_rank

log = logging.getLogger(__name__)


def damage_of_any_byte(folder: Path) -> str:
    """Return what is wrong with the shards in `folder`; empty where every byte is as it was written, and where there
    is no folder. Where nothing can be written beside it, rank 0 alone reads them.

    Raises:
        UserError: something is, and the folder holds files besides that no build has made.
    """
    wrong = shard_damage(folder)
    if wrong or not folder.is_dir() or _is_remembered(folder):
        return wrong
    with suppress(PermissionError), lock_if_possible(folder.parent / f".{folder.name}.verify.lock"):
        # Whoever held the lock has read them.
        if not _is_remembered(folder):
            wrong = _read_through(folder)
            if not wrong:
                write_atomic(_memory_of(folder), checked_json({"files": _stamps(folder)}), durable=False)
        return wrong
    # What was read cannot be remembered, and need not be read by every rank.
    if not is_main_rank():
        return ""
    log.info("%s: cannot be written to, so that each start reads all shards", folder.parent)
    return _read_through(folder)


def _read_through(folder: Path) -> str:
    stamps = _stamps(folder)
    kinds = (*DAMAGE, "checksum")
    wrong = next((found.message for found in verify_shards(folder) if found.kind in kinds), "")
    if wrong:
        require_only_shards(folder)
    elif stamps != _stamps(folder):
        return f"{folder}: changed while it was read"
    return wrong


def _memory_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.verified.json"


def _is_remembered(folder: Path) -> bool:
    try:
        remembered: object = parse_checked_json(_memory_of(folder).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return remembered == {"files": _stamps(folder)}


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return the size, times of change and inode of each file, by name."""
    status = {file.name: file.stat() for file in sorted(folder.iterdir())}
    return {name: [each.st_size, each.st_mtime_ns, each.st_ctime_ns, each.st_ino] for name, each in status.items()}
