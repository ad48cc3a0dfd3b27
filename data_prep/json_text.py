"""JSON values one after another out of a text that is never whole in memory."""

import io
import json
import re
from typing import cast

from configs.schema import Encoding
from data_prep.faults import BrokenRecord
from data_prep.records import is_undecodable, not_decodable
from data_prep.sources import DAMAGE

READ_CHARACTERS = 1_000_000
LONGEST_PART = 12
"""Characters of the longest JSON token or escape that may be cut in two: a pair of surrogates."""
BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


class JsonText:
    """A JSON text that is read as far as it is needed."""

    def __init__(self, stream: io.TextIOBase, encoding: Encoding) -> None:
        self._stream, self._encoding = stream, encoding
        beginning = stream.read(READ_CHARACTERS)
        self._text = beginning.removeprefix("\ufeff")
        self._at = 0
        self._left_behind = 0
        self._ended = not beginning

    def _read_on(self) -> None:
        """Leave behind what was used, and at least double what is held."""
        more = self._stream.read(max(READ_CHARACTERS, len(self._text) - self._at))
        self._left_behind += self._at
        self._text, self._at, self._ended = self._text[self._at :] + more, 0, not more

    def _skip_blanks(self) -> None:
        while True:
            self._at = cast(re.Match[str], BLANKS.match(self._text, self._at)).end()
            if self._at < len(self._text) or self._ended:
                return
            self._read_on()

    def at_end(self) -> bool:
        """Whether nothing but white space follows."""
        self._skip_blanks()
        return self._at == len(self._text)

    def take(self, sign: str) -> bool:
        """Step over `sign` if it comes next."""
        self._skip_blanks()
        found = self._text.startswith(sign, self._at)
        self._at += len(sign) if found else 0
        return found

    def value(self, limit: int) -> object:
        """Step over one JSON value of at most about `limit` characters; a Fault where it holds undecodable bytes."""
        self._skip_blanks()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                # A number at the end of what is held may go on.
                if end + LONGEST_PART < len(self._text) or self._ended:
                    is_broken = is_undecodable(self._text[self._at : end])
                    self._at = end
                    return self._undecodable().at(0) if is_broken else value
            except json.JSONDecodeError as error:
                if self._ended or not _may_go_on(error):
                    is_broken = is_undecodable(self._text[self._at : error.pos + 1])
                    self._at = error.pos
                    if is_broken:
                        raise self._undecodable() from error
                    raise BrokenRecord("json", f"broken JSON ({error.msg}); mend the file") from error
                if len(self._text) - self._at > limit:
                    message = f"broken JSON, or an element of over {limit} characters; raise corpus.longest_document"
                    raise BrokenRecord("too_long", message) from error
            except (ValueError, RecursionError) as error:
                # A number of thousands of digits, or thousands of brackets in one another.
                raise BrokenRecord("json", f"broken JSON ({error}); mend the file") from error
            self._read_on()

    def _undecodable(self) -> BrokenRecord:
        return BrokenRecord("encoding", not_decodable(self._encoding, "in this element"))

    def records_behind(self, count: int) -> int:
        """Records that the rest of the text may hold, if they are as long as the first `count`, which end here."""
        before, behind = self._left_behind + self._at, len(self._text) - self._at
        try:
            while more := self._stream.read(READ_CHARACTERS):
                behind += len(more)
        except (*DAMAGE, OSError):
            # Only an estimate: what lies behind the damage as well is not in it.
            pass
        return round(count * behind / max(1, before))


def _may_go_on(error: json.JSONDecodeError) -> bool:
    """Whether more text could make JSON of what broke off: it broke at its end, or inside a string."""
    return error.pos + LONGEST_PART >= len(error.doc) or error.msg.startswith("Unterminated string")
