"""What can be wrong with a line or record of the corpus."""

from dataclasses import dataclass
from typing import Literal

from data_prep.sources import SourceFile

Cause = Literal["encoding", "json", "field", "type", "surrogate", "compression", "csv", "format", "too_long"]


@dataclass(frozen=True)
class Fault:
    """One line or record that cannot be read, and why."""

    cause: Cause
    line: int
    """Line of its chunk, or row of its table, counted from 1; 0: the file as a whole."""
    message: str
    """What is wrong and the remedy, without the place."""


class BrokenRecord(Exception):
    """A fault on its way to the loop that knows the line."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause: Cause = cause

    def at(self, line: int) -> Fault:
        """The fault, at `line`."""
        return Fault(self.cause, line, str(self))


def damage(file: SourceFile, error: Exception) -> Fault:
    """The fault of a file whose decompression failed."""
    return Fault("compression", 0, f"damaged {file.compression} ({error}); fetch or compress the file again")
