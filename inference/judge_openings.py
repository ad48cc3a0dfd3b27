"""Documents cut into an opening and a continuation, and continuations cut to one length. Needs no torch."""

import re
from dataclasses import dataclass

from configs.schema import OpeningUnit

LONGEST_OPENING = 200
"""Characters; a longer first sentence or line leaves a small model no room."""
LENGTH_TOLERANCE = 0.1
"""Share of its length by which a continuation may differ from the one it is matched with."""

_FIRST = {
    # A full stop inside a number or a name is followed by no space.
    "sentence": re.compile(r"\s*(?P<opening>\S.*?[.!?…][\"'”’)\]]*)(?P<gap>\s+)(?P<rest>\S.*)", re.DOTALL),
    "line": re.compile(r"\s*(?P<opening>\S[^\n]*?)(?P<gap>[^\S\n]*\n\s*)(?P<rest>\S.*)", re.DOTALL),
}
_WORD_END = re.compile(r"\S(?=\s+\S)")


@dataclass(frozen=True)
class Opening:
    """The beginning of a document, and how a person went on."""

    text: str
    gap: str
    """White space between the two."""
    continuation: str
    """By the person, cut as the continuations of models are."""
    place: str
    """Where the document stands."""

    @property
    def prompt(self) -> str:
        """What a model goes on from: with the line's end where there is one, without a space, which begins a word."""
        return self.text + (self.gap if "\n" in self.gap else "")


def opening_of(document: str, place: str, unit: OpeningUnit, length: int, shortest: int) -> Opening | None:
    """A document's opening; none where it has none, or too little follows it.

    Args:
        length: most characters of the continuation.
        shortest: fewest characters that must follow the opening.
    """
    found = _FIRST[unit].fullmatch(document)
    if found is None or len(found["opening"]) > LONGEST_OPENING:
        return None
    rest = found["rest"].rstrip()
    if len(rest) < shortest:
        return None
    continuation = cut_at_word(rest, min(length, len(rest)))
    return None if continuation is None else Opening(found["opening"], found["gap"], continuation, place)


def cut_at_word(text: str, characters: int) -> str | None:
    """The beginning of `text`, about `characters` long, that ends where a word ends and another follows.

    The last word of a text is therefore never kept: a person's text that ends where its author ended it could be told
    from a model's that was cut.

    Returns:
        None where no such place is within `LENGTH_TOLERANCE` of `characters`.
    """
    most = int(characters * (1 + LENGTH_TOLERANCE))
    ends = [found.end() for found in _WORD_END.finditer(text, 0, min(len(text), most + 64)) if found.end() <= most]
    if not ends:
        return None
    # A person's text is cut below its length, so that a model's can be as long.
    nearest = min(ends, key=lambda end: (abs(end - characters), end))
    return text[:nearest] if abs(nearest - characters) <= LENGTH_TOLERANCE * characters else None
