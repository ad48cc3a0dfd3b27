"""Fractions of the time between two logged steps, from clocks that the test sets."""

import time

import pytest

from malmoi.train.metrics.timers import StepTimers, TimeFractions


def test_time_is_divided_into_what_it_was_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timers = StepTimers()

    def work(seconds: float) -> None:
        now[0] += seconds

    for _ in range(2):
        with timers.data_wait():
            work(1)
        work(5)
        timers.reached_all_reduce()
        work(2)
        timers.end_step()
        # Neither counts for the next step's time until its all-reduce.
        with timers.evaluation():
            work(3)
        with timers.checkpoint():
            work(9)
    assert timers.fractions() == TimeFractions(2, 40.0, 2 / 40, 18 / 40, 6 / 40)
    assert timers.seconds_to_all_reduce == 12
