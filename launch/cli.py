"""The `malmoi` command line: runs a subcommand and turns its errors into one line and an exit code."""

import sys
from collections.abc import Sequence

from malmoi.errors import (
    DISK_ERRORS,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_READER_GONE,
    EXIT_USER_ERROR,
    RunFailed,
    UserError,
)
from malmoi.launch.commands import COMMANDS, run_subcommand
from malmoi.ranks import is_main_rank
from malmoi.standard_streams import ReaderGone, reliable_streams
from malmoi.utf8_mode import restart_in_utf8_mode


def usage() -> str:
    """Return the text of `malmoi --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return (
        "usage: malmoi COMMAND [--config FILE_OR_PRESET] [--setting VALUE ...]\n\n"
        "Trains Korean language models from raw text.\n\ncommands:\n" + "\n".join(lines) + "\n\n"
        "`malmoi COMMAND --help` lists a command's settings. To start, try `malmoi train --config demo`."
    )


def _show_log(name: str) -> None:
    """Show what Malmoi logs on stderr: everything of rank 0, and warnings of the other ranks."""
    import logging  # not needed for --help

    logging.basicConfig(format=f"malmoi {name}: %(message)s", level=logging.WARNING)
    if is_main_rank():
        logging.getLogger("malmoi").setLevel(logging.INFO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; a user error is one line on stderr and exit code 2."""
    if argv is None:
        restart_in_utf8_mode()
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0]) if words else None
    try:
        with reliable_streams(command is not None and command.outlives_reader):
            return _run(words)
    except ReaderGone:
        return EXIT_READER_GONE


def _run(words: Sequence[str]) -> int:
    name = words[0] if words else ""
    if name in COMMANDS:
        _show_log(name)
    try:
        code = run_subcommand("", COMMANDS, usage(), words)
        sys.stdout.flush()
    except UserError as error:
        print(f"malmoi {name}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except RunFailed as error:
        print(f"malmoi {name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"malmoi {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except PermissionError as error:
        place, remedy = error.filename or "a file", "change its permissions, or name another place"
        print(f"malmoi {name}: {place}: {error.strerror}; {remedy}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = error.filename or "the disk that is written to"
        print(
            f"malmoi {name}: {place}: {error.strerror}; make room or name another place, and run again", file=sys.stderr
        )
        return EXIT_FAILED
    return code
