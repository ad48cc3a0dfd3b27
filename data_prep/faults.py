"""What can be wrong with a line or record of the corpus."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from configs.errors import BadInput
from data_prep.sources import SourceFile

log = logging.getLogger(__name__)

Cause = Literal[
    "encoding", "json", "field", "type", "surrogate", "compression", "csv", "format", "too_long", "unreachable"
]
"""Why a record was left out. `unreachable`: it lies behind another that is so broken that reading cannot go on."""

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Fault:
    """One line or record that cannot be read, and why."""

    cause: Cause
    line: int
    """Line of its chunk, or row of its table, counted from 1; 0: the file as a whole."""
    message: str
    """What is wrong and the remedy, without the place."""
    unreachable: int = 0
    """Records that are lost with this one, since nobody can tell where the next begins; counted, or estimated."""


class BrokenRecord(Exception):
    """A fault on its way to the loop that knows the line."""

    def __init__(self, cause: Cause, message: str, unreachable: int = 0) -> None:
        super().__init__(message)
        self.cause: Cause = cause
        self.unreachable = unreachable

    def at(self, line: int) -> Fault:
        """The fault, at `line`."""
        return Fault(self.cause, line, str(self), self.unreachable)


def log_cut_file(file: SourceFile, fault: Fault) -> None:
    """Say that a file is read to a fault and no further, which counts by cause do not tell."""
    place = f"{file.name}:{fault.line}" if fault.line else file.name
    about = f", about {fault.unreachable} records," if fault.unreachable else ""
    log.warning("%s: %s; what lies behind it%s is left out", place, fault.message, about)


def damage(file: SourceFile, error: Exception) -> Fault:
    """The fault of a file whose bytes, compressed or not, cannot be read to its end."""
    if file.compression == "none":
        return Fault("compression", 0, f"damaged {file.format} ({error}); fetch or write the file again")
    return Fault("compression", 0, f"damaged {file.compression} ({error}); fetch or compress the file again")


def count_fault(skipped: Counter[Cause], fault: Fault) -> None:
    """Add a fault, and what is lost with it, to the counts by cause."""
    skipped[fault.cause] += 1
    if fault.unreachable:
        skipped["unreachable"] += fault.unreachable


def check_share(skipped: Mapping[Cause, int], records: int, largest: float) -> None:
    """See that no more than a share `largest` of all `records` was skipped.

    Raises:
        BadInput: more was.
    """
    broken = sum(skipped.values())
    if broken > largest * records:
        raise BadInput(
            f"{broken} of {records} records are broken ({causes_of(skipped)}), more than corpus.largest_skipped_share "
            f"{largest}; mend the corpus, or raise it"
        )


def causes_of(counts: Mapping[Name, int]) -> str:
    """Counts by cause or reason, for messages."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
