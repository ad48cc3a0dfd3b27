"""How the threads of one computation on a CPU wait for each other, beside other programs.

torch computes with OpenMP's threads, which spin for up to some milliseconds while they wait: the fastest way on an idle
machine. Where another program wants a core too, the thread that lost its core is waited for by one that burns the
other, at each small product, and two threads are slower than one. GNU's OpenMP spins a thousandth as long while its
process has more threads than there are cores (libgomp/config/linux/wait.h: `gomp_throttled_spin_count_var`); so a
second team of threads, which sleeps, is all that it takes, and no result changes: as many threads compute as before.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WAIT_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""With either the user says how threads wait."""
POLL_SECONDS = 0.5
CALM_POLLS = 4
"""Polls in a row that find the machine free before threads spin again."""
BUSY_SHARE = 0.2
"""Of a core that other programs must take from this one's."""
ELEMENTS = 1 << 16
"""Of a sum that torch divides among threads."""


@contextmanager
def brief_waits_where_busy() -> Iterator[None]:
    """Have torch's threads give up their cores while they wait, as long as other programs want these; see the module.

    Does nothing with one thread, where the environment sets a policy, and where the kernel does not say what is busy.
    """
    import torch

    threads = torch.get_num_threads()
    if threads < 2 or any(name in os.environ for name in WAIT_POLICIES) or not Path("/proc/stat").is_file():
        yield
        return
    ends = threading.Event()
    watcher = threading.Thread(target=_watch, args=(threads, ends), name="thread-waiting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ends.set()
        watcher.join()


def describe_threads() -> str:
    """Return how many threads torch computes with on the CPU, and how they wait."""
    import torch

    count = torch.get_num_threads()
    policy = next((f"{name}={os.environ[name]}" for name in WAIT_POLICIES if name in os.environ), "")
    how = f", waiting by {policy}" if policy else ", which spin while the machine is free" if count > 1 else ""
    return counted_threads(count) + how


def counted_threads(count: int) -> str:
    """Return `1 thread`, `2 threads`."""
    return f"{count} thread{'s' * (count != 1)}"


@dataclass(frozen=True)
class Pressure:
    """Whether other programs want the cores, as polls tell: at once, and no more after `CALM_POLLS` that find none."""

    is_felt: bool = False
    calm: int = 0
    """Polls in a row that found none."""

    def after(self, is_busy: bool) -> "Pressure":
        """Return it after one more poll."""
        calm = 0 if is_busy else self.calm + 1
        return Pressure(is_busy or (self.is_felt and calm < CALM_POLLS), calm)


def _watch(threads: int, ends: threading.Event) -> None:
    cores = os.sched_getaffinity(0)
    before, team, pressure = _cpu_seconds(cores), None, Pressure()
    while not ends.wait(POLL_SECONDS):
        now = _cpu_seconds(cores)
        wall, others = now[0] - before[0], (now[1] - before[1]) - (now[2] - before[2])
        before = now
        pressure = pressure.after(wall > 0 and others / wall > len(cores) - threads + BUSY_SHARE)
        if pressure.is_felt and team is None:
            team = _Team()
        elif team is not None and not pressure.is_felt:
            team.end()
            team = None
    if team is not None:
        team.end()


def _cpu_seconds(cores: set[int]) -> tuple[float, float, float]:
    """Return since the machine's start: seconds of each core, busy seconds of all of them, and this process' own."""
    ticks = os.sysconf("SC_CLK_TCK")
    wall, busy = 0.0, 0.0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *counts = line.split()
        if name[3:].isdigit() and name.startswith("cpu") and int(name[3:]) in cores:
            # proc(5): user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
            times = [int(each) for each in counts[:8]]
            wall += sum(times) / ticks / len(cores)
            busy += (sum(times) - times[3] - times[4]) / ticks
    own = os.times()
    return wall, busy, own.user + own.system


class _Team:
    """A second team of OpenMP's threads, asleep until `end`."""

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sleep, name="thread-waiting-team", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let its threads go."""
        self._ends.set()
        self._thread.join()

    def _sleep(self) -> None:
        import torch

        # The first parallel product of a thread makes its team.
        torch.zeros(ELEMENTS).add_(1.0)
        self._ends.wait()
