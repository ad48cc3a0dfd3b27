"""A builder's heartbeat: a file that it rewrites every second, and what other processes conclude from it."""

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from malmoi.atomic_io import write_atomic

HEARTBEAT_FILE = "heartbeat.json"
HEARTBEAT_SECONDS = 1.0
SILENT_SECONDS = 30.0
"""A builder on another host whose file does not change for this long is taken for dead."""
NO_HEARTBEAT_SECONDS = 3.0
"""The same for a builder that has written no heartbeat at all."""
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
"""Names the boot of this host's kernel, where the system is Linux."""
ENDED_STATES = ("Z", "X", "x")


@dataclass(frozen=True)
class Progress:
    """How far a build is."""

    done_bytes: int = 0
    """Of the input as stored, compressed where it is."""
    total_bytes: int = 0
    documents: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        share = f"{100 * self.done_bytes / self.total_bytes:.0f}%, " if self.total_bytes else ""
        return f"{share}{self.documents:,} documents, {self.tokens:,} tokens"


@dataclass(frozen=True)
class BuilderState:
    """Who builds, and how far."""

    host: str
    """Host and process namespace, so that equal process ids in two containers are told apart."""
    pid: int
    started: str
    """When the process started, by `start_of`, so that a process id used again is told apart."""
    count: int
    progress: Progress
    has_failed: bool = False
    """Whether the builder gave up. Its process may live on, and even ask again."""


def _this_host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the target is no file that Path could resolve
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"


def start_of(pid: int) -> str | None:
    """Return when a process of this host started, only to be compared; none where it has ended, waited for or not.

    In clock ticks since which boot (proc_pid_stat(5), field 22), since the clock may be set while the process lives.
    """
    if not BOOT_FILE.exists():
        return _start_by_the_clock(pid)
    try:
        # Field 2, the process's name, is in brackets and may hold brackets itself; field 3 is its state.
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return None if state in ENDED_STATES else f"{BOOT_FILE.read_text(encoding='utf-8').strip()} {fields[18]}"


def _start_by_the_clock(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


class Heartbeat:
    """Writes the state of this process into a folder, from a thread of its own, while its `with` block lasts."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / HEARTBEAT_FILE
        self._state = BuilderState(_this_host(), os.getpid(), start_of(os.getpid()) or "", 0, Progress())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def report(self, progress: Progress) -> None:
        """Set the progress that is written next."""
        self._state = replace(self._state, progress=progress)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if kind is not None:
            self._state = replace(self._state, has_failed=True)
            try:
                self._write()
            except (
                OSError
            ):  # a full disk, or a folder that another process resumes; without a heartbeat it is taken for dead too
                self._file.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            try:
                self._write()
            except OSError:  # as above; the builder itself will meet it
                continue

    def _write(self) -> None:
        self._state = replace(self._state, count=self._state.count + 1)
        write_atomic(self._file, json.dumps(asdict(self._state)).encode(), durable=False)


def read_heartbeat(folder: Path) -> BuilderState | None:
    """Return what the builder in a folder last wrote, or none where it wrote nothing."""
    try:
        record = json.loads((folder / HEARTBEAT_FILE).read_bytes())
        return BuilderState(**{**record, "progress": Progress(**record["progress"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class LivenessCheck:
    """Tells live builders from dead ones, without comparing the clocks of two hosts."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def is_dead(self, folder: Path) -> bool:
        """Return whether a builder is known to be dead: at once if it failed or ran here, elsewhere after a silence."""
        state = read_heartbeat(folder)
        if state is not None and state.has_failed:
            return True
        if state is not None and state.host == _this_host():
            return start_of(state.pid) != state.started
        count = state.count if state is not None else -1
        now = time.monotonic()
        known = self._seen.get(folder)
        if known is None or known[0] != count:
            self._seen[folder] = (count, now)
            return False
        # Without any heartbeat it died in its first or last millisecond.
        return now - known[1] > (SILENT_SECONDS if state is not None else NO_HEARTBEAT_SECONDS)
