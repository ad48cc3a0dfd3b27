"""A run that makes no progress ends, and says where every thread is."""

import faulthandler
import sys


class Watchdog:
    """Ends this process, its stacks dumped to stderr, when `heartbeat` is not called for `seconds`; active as a context
    manager, 0 seconds: never.

    faulthandler's own thread keeps the time, outside Python's lock: a rank that hangs inside a collective is ended too,
    and so, since all wait for each other, is every rank.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def heartbeat(self) -> None:
        """Restart the clock."""
        if self._seconds > 0:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.stderr.fileno())

    def __enter__(self) -> "Watchdog":
        self.heartbeat()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
