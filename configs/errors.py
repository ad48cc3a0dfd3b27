"""The one error that a user can mend, and the exit codes of every command."""

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A disk that is full, or whose share is used up, or that cannot be written to."""


class BadInput(Exception):
    """Bad usage or bad input: its text is one line that names the thing, the place and the remedy.

    Commands print it on stderr without a traceback and exit with `EXIT_BAD_INPUT`.
    """


class RunFailed(Exception):
    """A run that cannot go on although its input is right: its text is one line that says what was seen.

    Commands print it on stderr and exit with `EXIT_FAILED`.
    """


def require_options(command: str, **given: bool) -> None:
    """Refuse a command line that lacks an option.

    Raises:
        BadInput: names the options that are not `given`.
    """
    missing = [f"--{name}" for name, is_given in given.items() if not is_given]
    if missing:
        raise BadInput(f"{' and '.join(missing)} missing; see `malmoi {command} --help`")


def require_argument(command: str, name: str, is_given: bool) -> None:
    """Refuse a command line that lacks the word `name`, which stands there without a flag.

    Raises:
        BadInput: it is not given.
    """
    if not is_given:
        raise BadInput(f"{name} missing; see `malmoi {command} --help`")


def one_line(error: Exception) -> str:
    """What a library says of an error, on one line."""
    return " ".join(str(error).split())


def first_line(error: Exception) -> str:
    """The first line of what a library says of an error, or the error's name where it says nothing."""
    said = str(error).strip()
    return said.split("\n", 1)[0].rstrip() if said else type(error).__name__


def nearest_name_hint(name: str, known: Iterable[str]) -> str:
    """How a sentence about `name` ends: `; did you mean 'x'?` with the closest known name, `.` where none is close."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else "."


def disk_error(error: Exception, file: Path) -> OSError | None:
    """The `OSError` that a library written in Rust tells of in words, about `file`; none where it tells of none."""
    found = re.search(r"os error (\d+)", str(error))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])), str(file))
