"""The errors that commands report in one line, and the exit codes of every command."""

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
"""What a shell reports of a command that SIGPIPE ended."""


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""The disk is full, the quota is used up, the file system is read-only, or the file would be larger than allowed."""


class UserError(Exception):
    """Bad usage or bad input: one line that names the thing, the place and the remedy.

    Commands print it on stderr without a traceback and exit with `EXIT_USER_ERROR`.
    """


class RunFailed(Exception):
    """A run that cannot continue although its input is valid: one line that says what was observed.

    Commands print it on stderr and exit with `EXIT_FAILED`.
    """


class RunStopped(Exception):
    """A signal or Ctrl-C stopped a run after it saved a checkpoint: the same call resumes from there.

    Only the Python API raises it; commands exit with `EXIT_STOPPED`.
    """


def require_options(command: str, **given: bool) -> None:
    """Refuse a command line that lacks an option.

    Raises:
        UserError: names the options that are not `given`.
    """
    missing = [f"--{name}" for name, is_given in given.items() if not is_given]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing; see `malmoi {command} --help`")


def require_argument(command: str, name: str, is_given: bool) -> None:
    """Refuse a command line that lacks the positional argument `name`.

    Raises:
        UserError: it is not given.
    """
    if not is_given:
        raise UserError(f"{name} missing; see `malmoi {command} --help`")


def one_line(error: Exception) -> str:
    """Return the message of a library's error on one line."""
    return " ".join(str(error).split())


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, or the error's name where it has no message."""
    message = str(error).strip()
    return message.split("\n", 1)[0].rstrip() if message else type(error).__name__


def nearest_name_hint(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about `name`: `; did you mean 'x'?`, or `.` where no known name is close."""
    names = list(known)
    # A setting without its group.
    near = [each for each in names if "." in each and each.rpartition(".")[2] == name.lstrip("-")]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else "."


def disk_error(error: Exception, file: Path) -> OSError | None:
    """Return the `OSError` about `file` that the message of a library written in Rust reports; None where none."""
    found = re.search(r"os error (\d+)", str(error))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])), str(file))
