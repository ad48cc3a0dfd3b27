"""Tables on a page of the documentation, between two markers that name the script that makes them."""

from pathlib import Path

END = "<!-- end of tables -->"


def begin_of(script: str) -> str:
    """The line before the tables of `benchmarks/SCRIPT`."""
    return f"<!-- tables: benchmarks/{script} -->"


def with_tables(page: str, script: str, made: str) -> str:
    """`page` with `made` between its markers, all else as it was.

    Raises:
        ValueError: it lacks one of them.
    """
    begin = begin_of(script)
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"no line '{begin}' followed by '{END}'")
    return f"{before}{begin}\n\n{made}\n\n{END}{after}"


def write_tables(page: Path, script: str, made: str) -> None:
    """Replace them in a file."""
    page.write_text(with_tables(page.read_text(encoding="utf-8"), script, made), encoding="utf-8")
