"""Split documents into an opening and a continuation, and cut continuations to one length. Needs no torch."""

import re
from dataclasses import dataclass

from malmoi.configs.commands import OpeningUnit

MAX_OPENING_CHARS = 200
"""A longer first sentence or line leaves no room in a small model's context."""
LENGTH_TOLERANCE = 0.1
"""Fraction of its length by which a continuation may differ from the person's."""

_FIRST = {
    # A full stop inside a number or a name is followed by no space.
    "sentence": re.compile(r"\s*(?P<opening>\S.*?[.!?…][\"'”’)\]]*)(?P<gap>\s+)(?P<rest>\S.*)", re.DOTALL),
    "line": re.compile(r"\s*(?P<opening>\S[^\n]*?)(?P<gap>[^\S\n]*\n\s*)(?P<rest>\S.*)", re.DOTALL),
}
_WORD_END = re.compile(r"\S(?=\s+\S)")


@dataclass(frozen=True)
class Opening:
    """The beginning of a document, and its continuation by a person."""

    text: str
    gap: str
    """White space between the two."""
    continuation: str
    """The person's, cut as the continuations of models are."""
    place: str
    """Source of the document, as `file:line`."""

    @property
    def prompt(self) -> str:
        """The prompt for a model: with the line break, if any, but without a space, which belongs to the next word."""
        return self.text + (self.gap if "\n" in self.gap else "")


def find_opening(document: str, place: str, unit: OpeningUnit, target_chars: int, min_chars: int) -> Opening | None:
    """Return a document's opening; none where it has none, or too little follows it.

    Args:
        target_chars: characters of the continuation, to within 10%; fewer where the document ends before.
        min_chars: characters that must follow the opening.
    """
    found = _FIRST[unit].fullmatch(document)
    if found is None or len(found["opening"]) > MAX_OPENING_CHARS:
        return None
    rest = found["rest"].rstrip()
    if len(rest) < min_chars:
        return None
    continuation = cut_at_word(rest, min(target_chars, len(rest)))
    return None if continuation is None else Opening(found["opening"], found["gap"], continuation, place)


def cut_at_word(text: str, characters: int) -> str | None:
    """Return the beginning of `text`, about `characters` long, that ends where a word ends and another follows.

    So the last word of a text is never kept: a person's text that ends where its author ended it could be told apart
    from a model's text, which was cut.

    Returns:
        None where there is no such end within `LENGTH_TOLERANCE` of `characters`.
    """
    most = int(characters * (1 + LENGTH_TOLERANCE))
    ends = [found.end() for found in _WORD_END.finditer(text, 0, min(len(text), most + 64)) if found.end() <= most]
    if not ends:
        return None
    # A person's text is cut below its length, so that a model's can be as long.
    nearest = min(ends, key=lambda end: (abs(end - characters), end))
    return text[:nearest] if abs(nearest - characters) <= LENGTH_TOLERANCE * characters else None
