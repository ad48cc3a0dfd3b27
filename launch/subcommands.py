"""Commands of a command: `malmoi slurm submit`, `malmoi judge make`."""

from collections.abc import Callable, Mapping, Sequence

from configs.errors import EXIT_DONE, BadInput, nearest_name_hint

Subcommand = Callable[[Sequence[str]], int]


def run_subcommand(command: str, subcommands: Mapping[str, Subcommand], usage: str, argv: Sequence[str]) -> int:
    """Run the one that the first word names, or print the usage where there is no word or it asks for help.

    Raises:
        BadInput: there is none of that name.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return EXIT_DONE
    name, rest = argv[0], argv[1:]
    if name not in subcommands:
        hint = nearest_name_hint(name, subcommands)
        raise BadInput(f"no command '{command} {name}'{hint} See `malmoi {command} --help`")
    return subcommands[name](rest)
