"""Build a folder exactly once, however many processes ask for it at the same time."""

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

from malmoi.atomic_io import fsync_path, write_atomic
from malmoi.data_prep.pipeline.heartbeat import Heartbeat, LivenessCheck, read_heartbeat
from malmoi.errors import RunFailed, UserError

POLL_SECONDS = 0.2
SHOW_SECONDS = 10.0
ABSENT_SECONDS = 60.0
"""How long a process that may not build waits without seeing another build."""
WORK = ".work"
"""Folder in a folder under construction, for what is not part of the result."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a builder failed, for the processes that wait for it."""

    nonce: str
    message: str
    is_user_error: bool


def never(folder: Path) -> bool:
    """Return whether a build can resume from what a builder left in `folder`: never."""
    return False


def nothing_wrong(folder: Path) -> str:
    """Return what is wrong with a finished folder: nothing, whatever it holds."""
    return ""


def build_once(
    final: Path,
    marker: str,
    build: Callable[[Path, Heartbeat], None],
    can_resume: Callable[[Path], bool] = never,
    may_build: bool = True,
    damage: Callable[[Path], str] = nothing_wrong,
    replaces: bool = False,
) -> Path:
    """Return `final`, built by `build(temporary_folder, heartbeat)` unless it is there.

    The builder works in a temporary folder beside `final` and renames it into place, so `final` is complete or
    absent. The rename decides: the lock, and the heartbeats, only spare others the same work, and where they
    fail it is work that is lost. Ask before any process group exists: waiting is then never inside a collective
    that could time out. Nothing stays beside `final` but what `can_resume` wants kept.

    Args:
        marker: the file that `build` writes last.
        can_resume: whether `build` can resume from what a dead or failed builder left in a temporary folder.
            Otherwise that is deleted.
        may_build: false: another host builds. This call waits, and builds only if nobody has for a minute.
        damage: what is wrong with the folder at `final`, which is then built again; empty where nothing is.
        replaces: a `final` without the marker is an older build, whose place this one takes when it is complete.
            Otherwise it is in the way.

    Raises:
        UserError: the builder that this call waited for failed by a user's error, or `final` cannot be written.
        RunFailed: it failed otherwise.
    """
    if (final / marker).is_file() and not damage(final):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _waiting(final) as mark:
            _wait_or_build(_Request(final, marker, build, can_resume, damage, replaces, mark), may_build)
    except PermissionError as error:
        raise UserError(f"{final}: cannot be written ({error.strerror}); choose another folder") from error
    return final


@dataclass(frozen=True)
class _Request:
    """One call of `build_once`."""

    final: Path
    marker: str
    build: Callable[[Path, Heartbeat], None]
    can_resume: Callable[[Path], bool]
    damage: Callable[[Path], str]
    replaces: bool
    mark: Path

    @property
    def has_marker(self) -> bool:
        return (self.final / self.marker).is_file()

    @property
    def is_done(self) -> bool:
        return self.has_marker and not self.damage(self.final)


def _wait_or_build(request: _Request, may_build: bool) -> None:
    liveness = LivenessCheck()
    known_failure = _read_failure(request.final)
    shown = last_builder = time.monotonic()
    while not request.is_done:
        _raise_new(_read_failure(request.final), known_failure)
        with try_lock(request.final.parent / f".{request.final.name}.lock") as has_lock:
            if has_lock and not request.is_done:
                _raise_new(_read_failure(request.final), known_failure)
                if not all(liveness.is_dead(folder / WORK) for folder in _unfinished(request.final)):
                    last_builder = time.monotonic()
                elif may_build or time.monotonic() - last_builder > ABSENT_SECONDS:
                    _build(request)
                    if request.has_marker:
                        # Were it wrong still, building it once more would not help: whoever reads it says what is.
                        return
                    continue
            else:
                last_builder = time.monotonic()
        if time.monotonic() - shown > SHOW_SECONDS:
            shown = time.monotonic()
            _show_builders(request.final)
        time.sleep(POLL_SECONDS)


def _waiting_marks(final: Path) -> list[Path]:
    return list(final.parent.glob(f".{final.name}.waiting-*"))


@contextmanager
def _waiting(final: Path) -> Iterator[Path]:
    """Keep a mark beside `final` for the block, so that a builder that fails knows whether others wait for it.

    The last process to leave deletes the report of the failure.
    """
    mark = final.parent / f".{final.name}.waiting-{uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
        if not _waiting_marks(final):
            _failure_file(final).unlink(missing_ok=True)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether this process has the lock for the block. Where the file system has no locks, every process has."""
    lock = FileLock(path, fallback_to_soft=False, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except PermissionError:
        raise
    except (OSError, NotImplementedError) as error:  # a file system without locks, by what the lock is made of
        log.warning(
            "%s: cannot be locked (%s); correctness does not need the lock, but work may be done twice", path, error
        )
        yield True
        return
    try:
        yield True
    finally:
        # While it is held: a process that opened it meanwhile sees that its name is gone, and tries again.
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
    if failure.is_user_error:
        raise UserError(failure.message)
    raise RunFailed(f"the process that was building failed: {failure.message}")


def _show_builders(final: Path) -> None:
    for folder in _unfinished(final):
        builder = read_heartbeat(folder / WORK)
        if builder is not None:
            log.info("waiting for process %d on %s: %s", builder.pid, builder.host.split()[0], builder.progress)


def _build(request: _Request) -> None:
    final, nonce = request.final, uuid4().hex
    temporary = final.parent / f".{final.name}.building-{nonce}"
    if final.is_dir() and (wrong := request.damage(final)):
        log.warning("%s; building it again", wrong)
        _delete(final)
    _adopt_leftover(request, temporary)
    (temporary / WORK).mkdir(parents=True, exist_ok=True)
    try:
        with Heartbeat(temporary / WORK) as heartbeat:
            if not (temporary / request.marker).is_file():
                request.build(temporary, heartbeat)
        shutil.rmtree(temporary / WORK)
        _rename_if_absent(temporary, request)
        # Whoever waits finds the marker from now on; marks of killed processes are deleted with the others.
        for mark in _waiting_marks(final):
            mark.unlink(missing_ok=True)
    except Exception as error:
        if not temporary.exists():
            # Another process took this one for dead and resumed its build: wait for that.
            log.warning("%s: another process resumed this build", final)
            return
        if _waiting_marks(final) != [request.mark]:
            message = str(error) or type(error).__name__
            _report_failure(final, Failure(nonce, message, isinstance(error, UserError)))
        if not request.can_resume(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _delete(final: Path) -> None:
    """Delete a folder, whose name is free at once: who reads it still has its files."""
    aside = final.parent / f".{final.name}.damaged-{uuid4().hex}"
    final.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _report_failure(final: Path, failure: Failure) -> None:
    try:
        write_atomic(_failure_file(final), json.dumps(asdict(failure)).encode(), durable=False)
    except OSError as error:  # a full disk; those who wait will find the lock free, build, and fail themselves
        log.warning("%s: the failure could not be reported to waiting processes (%s)", final, error)


def _adopt_leftover(request: _Request, temporary: Path) -> None:
    """Make what a dead builder left this one's, by a rename that only one process can win, and delete the rest."""
    for leftover in _unfinished(request.final):
        # With the marker it is complete: its builder died on the last step.
        is_complete = (leftover / request.marker).is_file()
        if not temporary.exists() and (is_complete or request.can_resume(leftover)):
            try:
                leftover.rename(temporary)
                log.info("%s: resuming from what a stopped build left", request.final)
                continue
            except OSError:
                continue
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(exist_ok=True)


def _rename_if_absent(temporary: Path, request: _Request) -> None:
    final = request.final
    temporary.chmod(0o755)
    fsync_path(temporary)
    # Named so that the next build deletes it should this process be killed.
    older = final.parent / f".{final.name}.building-{uuid4().hex}"
    if request.replaces and final.is_dir() and not request.is_done:
        final.rename(older)
    try:
        temporary.rename(final)
    except OSError:
        if not request.is_done:
            raise UserError(
                f"{final}: in the way, and not a finished folder of ours; move it or choose another"
            ) from None
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(final.parent)
    shutil.rmtree(older, ignore_errors=True)
