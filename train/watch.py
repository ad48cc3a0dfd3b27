"""A run that makes no progress ends, and says where every thread stood."""

import faulthandler
import sys


class Watchdog:
    """Ends this process, its stacks dumped to stderr, when `beat` was not called for so many seconds; entered, until it
    is left.

    The clock runs in a thread of faulthandler's own, outside Python's lock: a rank that hangs inside a collective
    is ended too, and so, since all wait for each other, is every rank.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def beat(self) -> None:
        """Progress was made."""
        if self._seconds > 0:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.stderr.fileno())

    def __enter__(self) -> "Watchdog":
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
