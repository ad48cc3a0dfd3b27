"""How the threads of one computation wait for each other.

OpenMP's threads (torch computes with them on a CPU) spin by default. Where another program wants a core too, the thread
that lost its core is waited for by one that burns the other, at each small product: beside one busy program the demo
fell to a quarter of its speed. Threads that sleep are woken as soon as there is work, and leave the core meanwhile.
"""

import os

WAIT_POLICY = "OMP_WAIT_POLICY"
"""OpenMP 5.2, section 21.1.3 (https://www.openmp.org/spec-html/5.2/openmpse101.html)."""


def have_waiting_threads_sleep() -> None:
    """Set OpenMP's wait policy to passive in the environment, unless one is set. Read when torch is imported, by this
    process and those that it starts; changes no result, since the number of threads stays."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


def describe_threads() -> str:
    """Return how many threads torch computes with on the CPU, and how they wait."""
    import torch

    policy = os.environ.get(WAIT_POLICY, "").lower()
    waiting = {"passive": "asleep", "active": "spinning"}.get(policy, f"as {WAIT_POLICY}={policy} has it")
    return f"{counted_threads(torch.get_num_threads())}, waiting {waiting}"


def counted_threads(count: int) -> str:
    """Return `1 thread`, `2 threads`."""
    return f"{count} thread{'s' * (count != 1)}"
