"""A fault: a name, and what happens to a workplace."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.outcome import Ended, Outcome
from tests.faults.workplace import Workplace


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, from outside."""

    group: str
    name: str
    happen: Callable[[Workplace], tuple[Outcome, Ended]]
