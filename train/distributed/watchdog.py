"""A run that makes no progress ends, and says what it waited for and where every thread is."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable

REPORT_SECONDS = 10
"""Between the timeout and the end of the process, in which the ranks tell each other what they wait for."""


class Watchdog:
    """Ends this process, its stacks dumped to stderr, when `heartbeat` is not called for `seconds`; active as a context
    manager, 0 seconds: never.

    faulthandler's own thread keeps the time of the end, outside Python's lock: a rank that hangs inside a collective is
    ended too, and so, since all wait for each other, is every rank.
    """

    def __init__(self, seconds: int, report: Callable[[], None] | None = None) -> None:
        """
        Args:
            report: called in a thread of its own at the timeout, `REPORT_SECONDS` before the end.
        """
        self._seconds, self._report = seconds, report
        self._last = time.monotonic()
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def heartbeat(self) -> None:
        """Restart the clock."""
        self._last = time.monotonic()
        if self._seconds > 0:
            faulthandler.dump_traceback_later(self._seconds + REPORT_SECONDS, exit=True, file=sys.stderr.fileno())

    def __enter__(self) -> "Watchdog":
        self.heartbeat()
        if self._seconds > 0 and self._report is not None:
            self._ends.clear()
            self._thread = threading.Thread(target=self._watch, args=(self._report,), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self, report: Callable[[], None]) -> None:
        left = float(self._seconds)
        while not self._ends.wait(left):
            left = self._last + self._seconds - time.monotonic()
            if left <= 0:
                report()
                left = float(self._seconds)
