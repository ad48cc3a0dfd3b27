"""What a benchmark said, as tables and a chart of a page in Markdown.

Numbers by name go into one line, a list of like objects into a table with a row each, objects by name into one with
their names as its first column, and shares of a whole into a Mermaid pie besides, which GitHub and GitLab draw.
"""

from collections.abc import Iterator
from typing import Any

LEAF = int | float | str | bool | None


def shown(figure: object) -> str:
    if isinstance(figure, list):
        return " / ".join(shown(each) for each in figure)
    if figure is None:
        return ""
    if isinstance(figure, bool) or not isinstance(figure, int | float):
        return str(figure)
    if isinstance(figure, int) or abs(figure) >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.4g}"


def figure_tables(figures: dict[str, Any], title: str = "") -> Iterator[str]:
    """Lines of Markdown for all that `figures` hold, nested as they are, none left out but what is none."""
    words: list[str] = []
    for name, value in figures.items():
        if _is_flat(value) and value is not None:
            words.append(f"{_words(name)} {shown(value)}")
        elif isinstance(value, dict) and all(_is_flat(each) for each in value.values()):
            inside = ", ".join(f"{_words(key)} {shown(each)}" for key, each in value.items())
            words.append(f"{_words(name)} ({inside})")
    if words:
        yield from (f"{title}{', '.join(words)}.", "")
    for name, value in figures.items():
        if _is_flat(value):
            continue
        named = f"{title}{_words(name)}: "
        if isinstance(value, list):
            yield from _table(value, named)
            yield from _pie(value)
        elif all(isinstance(each, dict) and all(map(_is_flat, each.values())) for each in value.values()):
            yield from _table([{name: key, **each} for key, each in value.items()], named)
        elif not all(_is_flat(each) for each in value.values()):
            yield from figure_tables(value, named)


def _is_flat(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, LEAF) for each in value)
    return isinstance(value, LEAF)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(rows: list[dict[str, Any]], title: str) -> Iterator[str]:
    columns = list(rows[0])
    yield from (title.removesuffix(": ") + ":", "")
    yield "| " + " | ".join(map(_words, columns)) + " |"
    yield "| " + " | ".join("---" for _ in columns) + " |"
    for row in rows:
        yield "| " + " | ".join(shown(row.get(column)) for column in columns) + " |"
    yield ""


def _pie(rows: list[dict[str, Any]]) -> Iterator[str]:
    texts = [name for name, value in rows[0].items() if isinstance(value, str)]
    if "share" not in rows[0] or not texts:
        return
    yield from ("```mermaid", "pie showData")
    for row in rows:
        yield f'  "{row[texts[0]]}" : {100 * row["share"]:.1f}'
    yield from ("```", "")
