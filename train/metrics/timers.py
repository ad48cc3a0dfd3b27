"""Where the time between two logged steps goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeFractions:
    """A stretch of time and what it was spent on."""

    steps: int
    seconds: float
    data_wait: float
    checkpoint: float
    evaluation: float


class StepTimers:
    """Clocks, in seconds, that start when this is made."""

    def __init__(self) -> None:
        self._began = self._step_began = time.perf_counter()
        self._data_wait = self._checkpoint = self._evaluation = 0.0
        self._steps = 0
        self.seconds_to_all_reduce = 0.0
        """From the beginning of each step until this rank was ready to reduce gradients, summed over the steps.
        On a GPU, until the host had queued the work."""

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Enclose reading samples."""
        began = time.perf_counter()
        yield
        self._data_wait += time.perf_counter() - began

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Enclose what training waits for when it saves."""
        began = time.perf_counter()
        yield
        self._checkpoint += time.perf_counter() - began
        self._step_began = time.perf_counter()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Enclose an evaluation."""
        began = time.perf_counter()
        yield
        self._evaluation += time.perf_counter() - began
        self._step_began = time.perf_counter()

    def reached_all_reduce(self) -> None:
        """Note that this rank waits for the others from now on."""
        self.seconds_to_all_reduce += time.perf_counter() - self._step_began

    def end_step(self) -> None:
        """Note that an optimizer step is done."""
        self._steps += 1
        self._step_began = time.perf_counter()

    def fractions(self) -> TimeFractions:
        """Return the time until now."""
        seconds = time.perf_counter() - self._began
        return TimeFractions(
            self._steps,
            seconds,
            self._data_wait / seconds,
            self._checkpoint / seconds,
            self._evaluation / seconds,
        )
