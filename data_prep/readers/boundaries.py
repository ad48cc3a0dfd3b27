"""Where a document may end in a file of lines, in bytes, so that it can be cut there without being decoded."""

import re

LINE_END = re.compile(rb"\n|\r(?=[^\n])")
"""A line end. A CR as the last byte seen is none: an LF may follow."""
TAIL_BYTES = 4096
"""Bytes in which the last boundary is searched for at first."""


def blank_lines(codec: str) -> re.Pattern[bytes]:
    """Return the pattern of a line end and all lines of white space behind it, as the decoder sees them.

    Line ends are the same bytes in UTF-8, CP949 and EUC-KR, none of whose trail bytes are line ends, so what follows
    one begins a character. Nothing is tried twice (possessive quantifiers): time is linear in the bytes.
    """
    spaces = []
    for character in filter(str.isspace, map(chr, range(0x10000))):
        if character not in "\r\n":
            spaces.append(character.encode(codec, errors="ignore"))
    space = b"|".join(re.escape(sign) for sign in spaces if sign)
    return re.compile(rb"(?:\n|\r(?!\n))(?:(?:" + space + rb")*+(?:\r?\n|\r(?=[^\n])))++")


class Boundaries:
    """Finds the boundaries of documents in bytes."""

    def __init__(self, pattern: re.Pattern[bytes] | None) -> None:
        """Search for `pattern`, behind which a document may begin; none: there is no boundary."""
        self._pattern = pattern

    def last(self, data: bytes) -> int:
        """Return the end of the last boundary of `data`, or 0 where there is none."""
        length = TAIL_BYTES
        while self._pattern is not None:
            found = 0
            for boundary in self._pattern.finditer(data, max(0, len(data) - length)):
                found = boundary.end()
            if found or length >= len(data):
                return found
            length *= 4
        return 0

    def first(self, data: bytes, start: int) -> int:
        """Return the end of the first boundary of `data` that reaches beyond `start`, or 0 where there is none.

        Before `start` there is none, but a line of white space may have begun, or a CR whose LF was not seen.
        """
        if self._pattern is None:
            return 0
        before = max(0, start - 1)
        begun = max(data.rfind(b"\n", 0, before), data.rfind(b"\r", 0, before))
        boundary = self._pattern.search(data, before if begun < 0 else begun)
        return boundary.end() if boundary else 0
