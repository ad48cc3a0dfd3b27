"""Build a folder exactly once, whoever asks and however many ask at the same time."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from configs.errors import BadInput


def build_once(final: Path, marker: str, build: Callable[[Path], None]) -> Path:
    """Return `final`, built by `build(temporary_folder)` unless it is there.

    The builder works in a temporary folder beside `final` and renames it into place, so `final` is whole or
    not there; the lock only spares others the same work. Ask before any process group exists: waiting is
    then never inside a collective that could time out.

    Args:
        marker: the file that `build` writes last.
    """
    if (final / marker).is_file():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / f".{final.name}.lock", fallback_to_soft=False):
            if (final / marker).is_file():
                return final
            temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.building-", dir=final.parent))
            try:
                build(temporary)
                _rename_if_absent(temporary, final, marker)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except PermissionError as error:
        raise BadInput(f"{final}: cannot be written ({error.strerror}); choose another folder") from error
    return final


def _rename_if_absent(temporary: Path, final: Path, marker: str) -> None:
    temporary.chmod(0o755)
    _fsync_folder(temporary)
    try:
        temporary.rename(final)
    except OSError:
        if not (final / marker).is_file():
            raise BadInput(
                f"{final}: in the way, and not a finished folder of ours; move it or choose another"
            ) from None
    _fsync_folder(final.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
