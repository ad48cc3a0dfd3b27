"""Where the time between two logged steps goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeShares:
    """An interval's length and the shares of it."""

    steps: int
    seconds: float
    waiting_for_data: float
    saving: float
    evaluating: float


class Interval:
    """Clocks, all in seconds, that begin when it is made."""

    def __init__(self) -> None:
        self._began = self._step_began = time.perf_counter()
        self._waiting = self._saving = self._evaluating = 0.0
        self._steps = 0
        self.seconds_to_exchange = 0.0
        """From the beginning of each step until this rank was ready to exchange gradients, summed over the steps.
        On a GPU, until the host had queued the work."""

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around reading samples."""
        began = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - began

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what the loop waits for when it saves."""
        began = time.perf_counter()
        yield
        self._saving += time.perf_counter() - began
        self._step_began = time.perf_counter()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around a look at the held-out part."""
        began = time.perf_counter()
        yield
        self._evaluating += time.perf_counter() - began
        self._step_began = time.perf_counter()

    def reached_exchange(self) -> None:
        """This rank waits for the others from now on."""
        self.seconds_to_exchange += time.perf_counter() - self._step_began

    def end_step(self) -> None:
        """An update is done."""
        self._steps += 1
        self._step_began = time.perf_counter()

    def shares(self) -> TimeShares:
        """The interval until now."""
        seconds = time.perf_counter() - self._began
        return TimeShares(
            self._steps, seconds, self._waiting / seconds, self._saving / seconds, self._evaluating / seconds
        )
