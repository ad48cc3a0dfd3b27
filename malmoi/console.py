"""Where tables are printed."""

from rich.console import Console

PLAIN_WIDTH = 160
"""Columns of a file or a pipe, which has no width of its own: enough for every table of ours."""


def table_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that truncates no table where the output is no terminal; rich takes 80 columns there."""
    console = Console(stderr=stderr, quiet=quiet, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console
