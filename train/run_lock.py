"""One training at a time in a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import BadInput
from train.run_folder import is_main_rank


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Hold the run folder, on rank 0, against a second start of the same run."""
    lock = FileLock(folder / ".training.lock", blocking=False, fallback_to_soft=False)
    if is_main_rank():
        try:
            lock.acquire()
        except Timeout:
            raise BadInput(f"{folder}: another process trains here; wait for it, or choose another --run") from None
    try:
        yield
    finally:
        lock.release()
