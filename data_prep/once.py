"""Build a folder exactly once, whoever asks and however many ask at the same time."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from configs.errors import BadInput
from data_prep.files import fsync_path, write_whole
from data_prep.heartbeat import Heartbeat, Watch, read_beat

POLL_SECONDS = 0.2
SHOW_SECONDS = 10.0
ABSENT_SECONDS = 60.0
"""How long one that may not build waits without seeing another build."""
WORK = ".work"
"""Folder in a folder under construction, for what is not part of the result."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A builder's last word to those who wait for it."""

    nonce: str
    message: str
    is_bad_input: bool


def worth_nothing(folder: Path) -> bool:
    """Whether to go on from what a builder left in `folder`: never."""
    return False


def build_once(
    final: Path,
    marker: str,
    build: Callable[[Path, Heartbeat], None],
    takes_over: Callable[[Path], bool] = worth_nothing,
    may_build: bool = True,
) -> Path:
    """Return `final`, built by `build(temporary_folder, heartbeat)` unless it is there.

    The builder works in a temporary folder beside `final` and renames it into place, so `final` is whole or
    not there. The rename decides: the lock, and the heartbeats, only spare others the same work, and where they
    fail it is work that is lost. Ask before any process group exists: waiting is then never inside a collective
    that could time out. Whoever asks leaves nothing beside `final` but what `takes_over` wants kept.

    Args:
        marker: the file that `build` writes last.
        takes_over: whether `build` can go on from what a dead or failed builder left in a temporary folder.
            Otherwise that is deleted.
        may_build: false: another host builds. This call waits, and builds only if nobody has for a minute.

    Raises:
        BadInput: the builder that this call waited for failed by bad input, or `final` cannot be written.
        RuntimeError: it failed otherwise.
    """
    if (final / marker).is_file():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _asking(final) as mark:
            _wait_or_build(_Asked(final, marker, build, takes_over, mark), may_build)
    except PermissionError as error:
        raise BadInput(f"{final}: cannot be written ({error.strerror}); choose another folder") from error
    return final


@dataclass(frozen=True)
class _Asked:
    """What one call of `build_once` asks for."""

    final: Path
    marker: str
    build: Callable[[Path, Heartbeat], None]
    takes_over: Callable[[Path], bool]
    mark: Path

    @property
    def is_there(self) -> bool:
        return (self.final / self.marker).is_file()


def _wait_or_build(asked: _Asked, may_build: bool) -> None:
    watch = Watch()
    known_failure = _read_failure(asked.final)
    shown = last_builder = time.monotonic()
    while not asked.is_there:
        _raise_new(_read_failure(asked.final), known_failure)
        with try_lock(asked.final.parent / f".{asked.final.name}.lock") as has_lock:
            if has_lock and not asked.is_there:
                _raise_new(_read_failure(asked.final), known_failure)
                if not all(watch.is_dead(folder / WORK) for folder in _unfinished(asked.final)):
                    last_builder = time.monotonic()
                elif may_build or time.monotonic() - last_builder > ABSENT_SECONDS:
                    _build(asked)
                    continue
            else:
                last_builder = time.monotonic()
        if time.monotonic() - shown > SHOW_SECONDS:
            shown = time.monotonic()
            _show_builders(asked.final)
        time.sleep(POLL_SECONDS)


def _asking_marks(final: Path) -> list[Path]:
    return list(final.parent.glob(f".{final.name}.asking-*"))


@contextmanager
def _asking(final: Path) -> Iterator[Path]:
    """A mark beside `final` while this process asks for it, so that a builder that fails knows whom to tell.

    The last to go takes the word of failure along.
    """
    mark = final.parent / f".{final.name}.asking-{uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
        if not _asking_marks(final):
            _failure_file(final).unlink(missing_ok=True)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether the lock is ours for the block. Where the file system has no locks, everybody's."""
    lock = FileLock(path, fallback_to_soft=False, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except PermissionError:
        raise
    except (OSError, NotImplementedError) as error:  # a file system without locks, by what the lock is made of
        log.warning("%s: no lock to be had (%s); correctness does not need it, but work may be done twice", path, error)
        yield True
        return
    try:
        yield True
    finally:
        # While it is held: whoever opened it meanwhile sees that it has no name any more, and tries again.
        with suppress(OSError):
            path.unlink()
        lock.release()


@contextmanager
def lock_if_possible(path: Path) -> Iterator[None]:
    """Hold the lock for the block, waiting as long as it takes; where the file system has no locks, hold none."""
    while True:
        with try_lock(path) as has_lock:
            if has_lock:
                yield
                return
        time.sleep(POLL_SECONDS)


def _unfinished(final: Path) -> list[Path]:
    return sorted(final.parent.glob(f".{final.name}.building-*"))


def _failure_file(final: Path) -> Path:
    return final.parent / f".{final.name}.failed.json"


def _read_failure(final: Path) -> Failure | None:
    try:
        return Failure(**json.loads(_failure_file(final).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _raise_new(failure: Failure | None, known: Failure | None) -> None:
    if failure is None or (known is not None and failure.nonce == known.nonce):
        return
    if failure.is_bad_input:
        raise BadInput(failure.message)
    raise RuntimeError(f"the process that was building failed: {failure.message}")


def _show_builders(final: Path) -> None:
    for folder in _unfinished(final):
        beat = read_beat(folder / WORK)
        if beat is not None:
            log.info("waiting for process %d on %s: %s", beat.pid, beat.host.split()[0], beat.progress)


def _build(asked: _Asked) -> None:
    final, nonce = asked.final, uuid4().hex
    temporary = final.parent / f".{final.name}.building-{nonce}"
    _take_over(asked, temporary)
    (temporary / WORK).mkdir(parents=True, exist_ok=True)
    try:
        with Heartbeat(temporary / WORK) as heartbeat:
            if not (temporary / asked.marker).is_file():
                asked.build(temporary, heartbeat)
        shutil.rmtree(temporary / WORK)
        _rename_if_absent(temporary, final, asked.marker)
        # Those who ask look for the marker from now on; marks of killed processes go with the others.
        for mark in _asking_marks(final):
            mark.unlink(missing_ok=True)
    except Exception as error:
        if not temporary.exists():
            # Taken for dead and taken over: wait for whoever goes on.
            log.warning("%s: another process went on with this build", final)
            return
        if _asking_marks(final) != [asked.mark]:
            message = str(error) or type(error).__name__
            _leave_word(final, Failure(nonce, message, isinstance(error, BadInput)))
        if not asked.takes_over(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _leave_word(final: Path, failure: Failure) -> None:
    try:
        write_whole(_failure_file(final), json.dumps(asdict(failure)).encode(), durable=False)
    except OSError as error:  # a full disk; those who wait will find the lock free, try, and see for themselves
        log.warning("%s: no word left to those who wait (%s)", final, error)


def _take_over(asked: _Asked, temporary: Path) -> None:
    """Make the leftovers of a dead builder this one's, by a rename that only one can win, and delete others'."""
    for leftover in _unfinished(asked.final):
        # With the marker it is whole: its builder died on the last step.
        is_whole = (leftover / asked.marker).is_file()
        if not temporary.exists() and (is_whole or asked.takes_over(leftover)):
            try:
                leftover.rename(temporary)
                log.info("%s: going on from what a stopped build left", asked.final)
                continue
            except OSError:
                continue
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(exist_ok=True)


def _rename_if_absent(temporary: Path, final: Path, marker: str) -> None:
    temporary.chmod(0o755)
    fsync_path(temporary)
    try:
        temporary.rename(final)
    except OSError:
        if not (final / marker).is_file():
            raise BadInput(
                f"{final}: in the way, and not a finished folder of ours; move it or choose another"
            ) from None
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(final.parent)
