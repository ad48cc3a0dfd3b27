"""Commands of a command: `malmoi slurm submit`, `malmoi judge make`."""

import sys
from collections.abc import Callable, Mapping, Sequence

from configs.errors import EXIT_BAD_INPUT, EXIT_DONE, BadInput, nearest_name_hint

Subcommand = Callable[[Sequence[str]], int]


def run_subcommand(command: str, subcommands: Mapping[str, Subcommand], usage: str, argv: Sequence[str]) -> int:
    """Run the one that the first word names; print the usage where it asks for help, and on stderr where there is none.

    Raises:
        BadInput: there is none of that name.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage, file=sys.stdout if argv else sys.stderr)
        return EXIT_DONE if argv else EXIT_BAD_INPUT
    name, rest = argv[0], argv[1:]
    if name not in subcommands:
        hint = nearest_name_hint(name, subcommands)
        raise BadInput(f"no command '{command} {name}'{hint} See `malmoi {command} --help`")
    return subcommands[name](rest)
