"""What a fault ends in: the right result or a refusal in one line; anything else is a defect."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Outcome(StrEnum):
    """How a fault ended."""

    RIGHT = "right"
    """The command ended with 0 and left what an undisturbed one leaves, to the byte."""
    RESUMED = "resumed, right"
    """The process ended as it was asked to, and the same command again ended right."""
    REFUSED = "refused in one line"
    """An exit code that is not 0, and a line that says why."""
    SILENT = "SILENT"
    """The command ended with 0 and left something else."""
    TRACEBACK = "TRACEBACK"
    WORDLESS = "WORDLESS"
    """An exit code that is not 0, and no line that says why."""
    HANGS = "HANGS"
    CODE = "WRONG CODE"
    """Another exit code than the fault's nature asks for."""


GOOD = (Outcome.RIGHT, Outcome.RESUMED, Outcome.REFUSED)


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int | None
    """As `Popen.returncode`; None: it did not end within its limit and was killed."""
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Result:
    """A fault and its outcome."""

    group: str
    fault: str
    outcome: Outcome
    said: str
    """The last line on stderr, or more where the outcome is a defect."""

    @property
    def is_good(self) -> bool:
        """Whether it may end so."""
        return self.outcome in GOOD


def refusal(ended: Ended) -> Outcome:
    """Return what a process that did not do what it was asked for has ended in."""
    if ended.code is None:
        return Outcome.HANGS
    if "Traceback (most recent call last)" in ended.stderr or "Fatal Python error" in ended.stderr:
        return Outcome.TRACEBACK
    if re.search(r"^malmoi[ :].+", ended.stderr, re.MULTILINE) is None or ended.code < 0:
        return Outcome.WORDLESS
    return Outcome.REFUSED if ended.code in (1, 2) else Outcome.CODE


def of_command(ended: Ended, is_right: bool) -> Outcome:
    """Return the outcome of a command that met a fault and was not killed.

    Args:
        is_right: whether what it left is what an undisturbed command leaves; of meaning where it ended with 0.
    """
    if ended.code != 0:
        return refusal(ended)
    if "Traceback (most recent call last)" in ended.stderr:
        return Outcome.TRACEBACK
    return Outcome.RIGHT if is_right else Outcome.SILENT


def said(ended: Ended, outcome: Outcome) -> str:
    """Return what a table shows of what the process said."""
    lines = [line for line in ended.stderr.strip().splitlines() if line.strip()]
    if outcome in GOOD:
        return lines[-1][-300:] if lines else ""
    return f"exit code {ended.code}: " + "\n".join(lines[-3:])[-600:]


def same_files(folder: Path, other: Path) -> bool:
    """Return whether two folders hold the same files with the same bytes."""
    if not folder.is_dir() or not other.is_dir():
        return False
    ours, theirs = (
        {file.name: file.read_bytes() for file in each.iterdir() if file.is_file()} for each in (folder, other)
    )
    return ours == theirs
