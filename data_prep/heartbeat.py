"""A builder's sign of life: a file that it rewrites every second, and what others conclude from it."""

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

from data_prep.files import write_whole

BEAT_FILE = "heartbeat.json"
BEAT_SECONDS = 1.0
SILENT_SECONDS = 30.0
"""A builder on another host whose file does not change for this long is taken for dead."""
BEATLESS_SECONDS = 3.0
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
class Beat:
    """Who builds, and how far."""

    host: str
    """Host and process namespace, so that equal process numbers in two containers are told apart."""
    pid: int
    started: str
    """When the process started, as `start_of` tells it, so that a number used again is told apart."""
    count: int
    progress: Progress
    has_failed: bool = False
    """Whether the builder gave up. Its process may live on, and even ask again."""


def _this_host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no file lies there for Path to read
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"


def start_of(pid: int) -> str | None:
    """When a process of this host started, to be compared and no more; none where it has ended, waited for or not.

    In clock ticks since which boot (proc_pid_stat(5), field 22), since the clock may be set while the process lives.
    """
    if not BOOT_FILE.exists():
        return _start_by_the_clock(pid)
    try:
        # Field 2, the process's name, stands in brackets and may hold brackets itself; field 3 is its state.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ENDED_STATES else f"{BOOT_FILE.read_text().strip()} {fields[18]}"


def _start_by_the_clock(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


class Heartbeat:
    """Writes the beats of this process into a folder, from a thread of its own, while its `with` block lasts."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / BEAT_FILE
        self._beat = Beat(_this_host(), os.getpid(), start_of(os.getpid()) or "", 0, Progress())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def tell(self, progress: Progress) -> None:
        """Set what the next beat shows."""
        self._beat = replace(self._beat, progress=progress)

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
            self._beat = replace(self._beat, has_failed=True)
            try:
                self._write()
            except OSError:  # a full disk, or a folder taken over; without a beat it is taken for dead as well
                self._file.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            try:
                self._write()
            except OSError:  # a full disk, or a folder taken over; the builder itself will meet it
                continue

    def _write(self) -> None:
        self._beat = replace(self._beat, count=self._beat.count + 1)
        write_whole(self._file, json.dumps(asdict(self._beat)).encode(), durable=False)


def read_beat(folder: Path) -> Beat | None:
    """The last beat in a folder, or none where there is none."""
    try:
        record = json.loads((folder / BEAT_FILE).read_bytes())
        return Beat(**{**record, "progress": Progress(**record["progress"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Watch:
    """Tells living builders from dead ones, without comparing the clocks of two hosts."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def is_dead(self, folder: Path) -> bool:
        """Whether a builder is known to be dead: at once if it failed or ran here, elsewhere after a silence."""
        beat = read_beat(folder)
        if beat is not None and beat.has_failed:
            return True
        if beat is not None and beat.host == _this_host():
            return start_of(beat.pid) != beat.started
        count = beat.count if beat is not None else -1
        now = time.monotonic()
        known = self._seen.get(folder)
        if known is None or known[0] != count:
            self._seen[folder] = (count, now)
            return False
        # Without any beat it died in its first or last millisecond.
        return now - known[1] > (SILENT_SECONDS if beat is not None else BEATLESS_SECONDS)
