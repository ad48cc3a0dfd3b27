"""Where a document may end in a file of lines, in bytes, so that it can be cut there without being decoded."""

import re

from configs.schema import DocumentUnit, Encoding
from data_prep.sources import SourceFile
from data_prep.tables import decodable

LINE = rb"\n|\r(?=[^\n])"
"""A line end. A CR as the last byte seen is none: an LF may follow."""
TAIL_BYTES = 4096
"""Bytes in which the last border is looked for at first."""


def _blank_lines(encoding: Encoding) -> bytes:
    """Pattern of a line end and all lines of white space behind it, as the decoder tells them.

    Line ends are the same bytes in UTF-8, CP949 and EUC-KR, none of whose trail bytes are line ends, so what follows
    one begins a character. Nothing is tried twice (possessive quantifiers): time grows with the bytes alone.
    """
    spaces = []
    for character in filter(str.isspace, map(chr, range(0x10000))):
        if character not in "\r\n":
            spaces.append(character.encode(decodable(encoding), errors="ignore"))
    space = b"|".join(re.escape(sign) for sign in spaces if sign)
    return rb"(?:\n|\r(?!\n))(?:(?:" + space + rb")*+(?:\r?\n|\r(?=[^\n])))++"


class Borders:
    """Finds the borders of one file."""

    def __init__(self, file: SourceFile, unit: DocumentUnit, encoding: Encoding) -> None:
        if file.format == "jsonl" or unit == "line":
            self._border: re.Pattern[bytes] | None = re.compile(LINE)
        elif unit == "paragraph":
            self._border = re.compile(_blank_lines(encoding))
        else:
            self._border = None

    def last(self, data: bytes) -> int:
        """End of the last border of `data`, or 0 where there is none."""
        length = TAIL_BYTES
        while self._border is not None:
            found = 0
            for border in self._border.finditer(data, max(0, len(data) - length)):
                found = border.end()
            if found or length >= len(data):
                return found
            length *= 4
        return 0

    def first(self, data: bytes, start: int) -> int:
        """End of the first border of `data` that reaches beyond `start`, or 0 where there is none.

        Before `start` there is none, but a line of white space may have begun, or a CR whose LF was not seen.
        """
        if self._border is None:
            return 0
        before = max(0, start - 1)
        begun = max(data.rfind(b"\n", 0, before), data.rfind(b"\r", 0, before))
        border = self._border.search(data, before if begun < 0 else begun)
        return border.end() if border else 0
