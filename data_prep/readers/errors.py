"""What can be wrong with a line or record of the corpus."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.errors import UserError

log = logging.getLogger(__name__)

Cause = Literal[
    "encoding", "json", "field", "type", "surrogate", "compression", "csv", "format", "too_long", "unreachable"
]
"""Why a record was skipped. `unreachable`: reading cannot continue behind an earlier broken record."""

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class RecordError:
    """One line or record that cannot be read, and why."""

    cause: Cause
    line: int
    """Line of its chunk, or number of its record, counted from 1; 0: the file as a whole."""
    message: str
    """What is wrong and the remedy, without the place."""
    unreachable: int = 0
    """Records that are lost with this one, since nobody can tell where the next begins; counted, or estimated."""


class BrokenRecord(Exception):
    """A record error raised where its line is not known."""

    def __init__(self, cause: Cause, message: str, unreachable: int = 0) -> None:
        super().__init__(message)
        self.cause: Cause = cause
        self.unreachable = unreachable

    def at(self, line: int) -> RecordError:
        """Return the record error, at `line`."""
        return RecordError(self.cause, line, str(self), self.unreachable)


class BrokenFile(BrokenRecord):
    """An error of the file as a whole: it is not of its format, or damaged."""

    def at(self, line: int) -> RecordError:
        """Return the record error, which has no line."""
        return super().at(0)


def log_cut_file(file: SourceFile, error: RecordError) -> None:
    """Warn that a file is read up to an error and no further, which counts by cause do not show."""
    about = f", about {error.unreachable} records," if error.unreachable else ""
    log.warning("%s: %s; the rest of the file%s is left out", error_place(file, error), error.message, about)


def error_place(file: SourceFile, error: RecordError, lines_before: int = 0) -> str:
    """Return `file:line` of an error, or the file alone where the error is of the file as a whole."""
    return f"{file.name}:{lines_before + error.line}" if error.line else file.name


def damage(file: SourceFile, error: Exception) -> RecordError:
    """Return the record error of a file whose bytes, compressed or not, cannot be read to its end."""
    if file.compression == "none":
        return RecordError("compression", 0, f"damaged {file.suffix[1:]} ({error}); fetch or write the file again")
    return RecordError("compression", 0, f"damaged {file.compression} ({error}); fetch or compress the file again")


def count_error(skipped: Counter[Cause], error: RecordError) -> None:
    """Add an error, and what is lost with it, to the counts by cause."""
    skipped[error.cause] += 1
    if error.unreachable:
        skipped["unreachable"] += error.unreachable


def check_error_rate(skipped: Mapping[Cause, int], records: int, max_error_rate: float) -> None:
    """Check that at most a fraction `max_error_rate` of all `records` was skipped.

    Raises:
        UserError: more was.
    """
    broken = sum(skipped.values())
    if broken > max_error_rate * records:
        raise UserError(
            f"{broken} of {records} records are broken ({counts_by_name(skipped)}), more than corpus.max_error_rate "
            f"{max_error_rate}; fix the corpus, or raise it"
        )


def counts_by_name(counts: Mapping[Name, int]) -> str:
    """Return counts by cause or reason, for messages."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
