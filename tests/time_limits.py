"""Time limits, all from one place: they end a hang and never measure speed, so a busy machine gets more time.

MALMOI_TEST_TIME_SCALE multiplies every limit, for machines that are slow in a way that their load does not show.
"""

import os
import time
from collections.abc import Callable

SLACK = 4.0
"""Factor on every limit: load that begins after a limit was set counts too, and the load average lags behind."""


def seconds(base: float) -> float:
    """Return the limit for what takes less than `base` seconds on an idle machine: longer the more processes want each
    core."""
    scale = float(os.environ.get("MALMOI_TEST_TIME_SCALE", "1"))
    waiting = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return base * scale * SLACK * max(1.0, waiting)


def wait_until(is_so: Callable[[], bool], base: float, what: str, pause: float = 0.005) -> None:
    """Poll until `is_so()`.

    Args:
        base: as for `seconds`.
        what: is waited for, in words.
        pause: seconds between two polls.

    Raises:
        TimeoutError: it was not so within the limit.
    """
    limit = seconds(base)
    end = time.monotonic() + limit
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit:.0f} s: {what}")
        time.sleep(pause)
