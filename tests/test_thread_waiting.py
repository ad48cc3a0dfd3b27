"""Threads give up their cores while they wait where other programs want these."""

import subprocess
import sys
import threading

import pytest
import torch

from malmoi.thread_waiting import CALM_POLLS, WAIT_POLICIES, Pressure, brief_waits_where_busy, describe_threads
from tests.launching import environment
from tests.time_limits import seconds

PROGRAM = """
import os, subprocess, sys, time
import torch
from malmoi.thread_waiting import brief_waits_where_busy

def second_team():
    return len(os.listdir("/proc/self/task")) > alone

torch.set_num_threads(2)  # on two hyperthreads of one core MKL has torch take one, whatever OMP_NUM_THREADS says
torch.zeros(1 << 16).add_(1.0)
alone = len(os.listdir("/proc/self/task")) + 1  # and the one that watches
with brief_waits_where_busy():
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    end = time.monotonic() + float(sys.argv[1])
    while not second_team() and time.monotonic() < end:
        torch.zeros(1 << 16).add_(1.0)
        time.sleep(0.05)
    print(second_team(), torch.get_num_threads())
    for loop in loops:
        loop.kill()
        loop.wait()
print(second_team())
"""


def test_beside_busy_programs_there_is_a_second_team_and_as_many_threads_compute() -> None:
    """libgomp waits briefly where there are more threads than cores; what it is worth: benchmarks/busy_machine.py."""
    variables = {name: value for name, value in environment().items() if name not in WAIT_POLICIES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seconds(20))],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds(60),
    )
    assert done.stdout.splitlines() == ["True 2", "False"]


def test_threads_spin_again_only_after_polls_in_a_row_that_find_the_machine_free() -> None:
    pressure, felt = Pressure(), []
    free = [False] * (CALM_POLLS - 1)
    for is_busy in (False, True, *free, True, *free, False, False, True):
        pressure = pressure.after(is_busy)
        felt.append(pressure.is_felt)
    brief = [True] * CALM_POLLS
    assert felt == [False, *brief, *brief, False, False, True]


@pytest.mark.parametrize(("name", "value"), zip(WAIT_POLICIES, ("PASSIVE", "1000"), strict=True))
def test_where_the_user_says_how_threads_wait_nobody_watches(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_watched() -> bool:
        with brief_waits_where_busy():
            return "thread-waiting" in {thread.name for thread in threading.enumerate()}

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for each in WAIT_POLICIES:
            monkeypatch.delenv(each, raising=False)
        assert is_watched()
        monkeypatch.setenv(name, value)
        assert not is_watched()
        assert describe_threads() == f"2 threads, waiting by {name}={value}"
    finally:
        torch.set_num_threads(before)
