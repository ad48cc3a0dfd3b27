"""JSON lines, and JSON values in an array or one after another."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO, cast

from malmoi.configs.corpus import Encoding, TextSettings
from malmoi.data_prep.readers.boundaries import LINE_END
from malmoi.data_prep.readers.errors import BrokenRecord, RecordError
from malmoi.data_prep.readers.records import is_undecodable, not_decodable, text_of, text_or_error, unicode_text
from malmoi.data_prep.readers.source_file import DAMAGE, SourceFile, open_text
from malmoi.data_prep.readers.spec import (
    RECORD_FACTOR,
    FieldRecord,
    LineChunk,
    LineFormat,
    RawDocument,
    ReaderSpec,
)

READ_CHARACTERS = 1_000_000
LONGEST_PART = 12
"""Characters of the longest JSON token or escape that may be cut in two: a pair of surrogates."""
MAX_DEPTH = 10_000
"""Objects and arrays in one another, in a line."""
BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""A bracket, or a string, whose brackets are text."""
BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


def _documents_of_lines(chunk: LineChunk, settings: TextSettings) -> Iterator[RawDocument | RecordError]:
    for number, record in _records_of_lines(chunk, settings):
        try:
            if isinstance(record, RecordError):
                yield record
            else:
                yield RawDocument(unicode_text(text_of(record, settings.text_field)), number)
        except BrokenRecord as broken:
            yield broken.at(number)


def _fields_of_lines(chunk: LineChunk, settings: TextSettings) -> Iterator[FieldRecord | RecordError]:
    for number, record in _records_of_lines(chunk, settings):
        yield record if isinstance(record, RecordError) else _fields_of(record, number)


def _fields_of(record: Any, line: int) -> FieldRecord | RecordError:
    if isinstance(record, dict):
        return FieldRecord(record, tuple(record), line)
    return RecordError("type", line, f"no JSON object but {type(record).__name__}; write one object a row")


def _records_of_lines(chunk: LineChunk, settings: TextSettings) -> Iterator[tuple[int, Any]]:
    """Yield the numbers of lines and the JSON values on them, or what is wrong with them."""
    held: tuple[int, str | RecordError] | None = None
    for number, text in chunk.lines:
        if held is not None:
            yield from _record_of_line(*held)
        # The rest of a record that was cut for its length was counted where it began.
        held = None if chunk.starts_inside and number == 1 else (number, text)
    if held is not None and chunk.ends_inside:
        message = (
            f"a record of more than {RECORD_FACTOR * settings.max_document_bytes} bytes; raise "
            "corpus.max_document_bytes, which preparing needs memory for, or divide the record"
        )
        yield held[0], RecordError("too_long", held[0], message)
    elif held is not None:
        yield from _record_of_line(*held)


def _record_of_line(number: int, text: str | RecordError) -> Iterator[tuple[int, Any]]:
    if isinstance(text, RecordError):
        yield number, text
    elif text and not text.isspace():
        try:
            yield number, parse_json(text)
        except BrokenRecord as broken:
            yield number, broken.at(number)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        BrokenRecord: it is no JSON, or nested more than `MAX_DEPTH` deep.
    """
    _require_shallow(text)
    try:
        return json.loads(text)
    except ValueError as error:
        raise BrokenRecord("json", f"broken JSON ({error}); fix or delete the line") from error
    except RecursionError:
        # How deep it can recurse depends on Python's version and on who calls: the records that are read must not.
        return _parse_iteratively(text)


def _parse_iteratively(text: str) -> Any:
    """Do as `json.loads`, a hundred times slower and without recursion."""
    import io

    import ijson.backends.python as iterative_json
    from ijson.common import ObjectBuilder

    builder = ObjectBuilder()
    try:
        for event, value in iterative_json.basic_parse(io.BytesIO(text.encode(errors="surrogatepass"))):
            builder.event(event, value)
    except (iterative_json.common.JSONError, ValueError) as error:
        raise BrokenRecord("json", f"broken JSON ({error}); fix or delete the line") from error
    return builder.value


def _require_shallow(text: str) -> None:
    """Check, in time linear in the text, that a JSON value is not nested too deep.

    Raises:
        BrokenRecord: it is nested more than `MAX_DEPTH` deep.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise BrokenRecord("json", f"nested more than {MAX_DEPTH} deep; flatten or delete the record")


def _texts_of_values(file: SourceFile, settings: TextSettings) -> Iterator[str | RecordError]:
    for value in _values(file, settings):
        yield value if isinstance(value, RecordError) else text_or_error(value, settings.text_field)


def _fields_of_values(
    file: SourceFile, settings: TextSettings, names: tuple[str, ...]
) -> Iterator[FieldRecord | RecordError]:
    for value in _values(file, settings):
        yield value if isinstance(value, RecordError) else _fields_of(value, 0)


def _values(file: SourceFile, settings: TextSettings) -> Iterator[Any]:
    """Yield an array's elements, or, without an array, JSON values one after another, or what is wrong with them.

    Behind broken JSON nobody can tell whether `{` begins an element or is inside one, so reading ends there.
    """
    with open_text(file, errors="surrogateescape") as stream:
        text = JsonText(stream, file.encoding)
        count = 0
        try:
            in_array = text.take("[")
            closed = in_array and text.take("]")
            while not closed and not text.at_end():
                value = text.value(RECORD_FACTOR * settings.max_document_bytes)
                count += 1
                yield value
                if in_array and not text.take(","):
                    closed = text.take("]")
                    if not closed and not text.at_end():
                        raise BrokenRecord("json", "no comma or bracket after an element; fix the file")
            if in_array and not closed:
                raise BrokenRecord("json", "the file ends inside the array; fetch it again")
            if not text.at_end():
                raise BrokenRecord("json", "text after the end of the array; delete it")
        except BrokenRecord as broken:
            if settings.on_error == "skip":
                broken.unreachable = text.records_behind(count + 1)
            raise


class JsonText:
    """A JSON text that is read only as far as it is needed.

    Not ijson: its parsers make `?` of half a surrogate pair, end at the first byte that is not UTF-8, and hold an
    element of any length.
    """

    def __init__(self, stream: TextIO, encoding: Encoding) -> None:
        self._stream, self._encoding = stream, encoding
        beginning = stream.read(READ_CHARACTERS)
        self._text = beginning.removeprefix("\ufeff")
        self._at = 0
        self._left_behind = 0
        self._ended = not beginning

    def _read_on(self) -> None:
        """Drop what was used, and at least double what is held."""
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
        """Return whether nothing but white space follows."""
        self._skip_blanks()
        return self._at == len(self._text)

    def take(self, sign: str) -> bool:
        """Step over `sign` if it comes next."""
        self._skip_blanks()
        found = self._text.startswith(sign, self._at)
        self._at += len(sign) if found else 0
        return found

    def value(self, limit: int) -> object:
        """Step over one JSON value of at most about `limit` characters, and return it; a RecordError where it holds
        undecodable bytes.

        Raises:
            BrokenRecord: it is no JSON, or too long.
        """
        self._skip_blanks()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                # A number at the end of what is held may continue.
                if end + LONGEST_PART < len(self._text) or self._ended:
                    is_broken = is_undecodable(self._text[self._at : end])
                    self._at = end
                    return self._undecodable().at(0) if is_broken else value
            except json.JSONDecodeError as error:
                if self._ended or not _may_continue(error):
                    is_broken = is_undecodable(self._text[self._at : error.pos + 1])
                    self._at = error.pos
                    if is_broken:
                        raise self._undecodable() from error
                    raise BrokenRecord("json", f"broken JSON ({error.msg}); fix the file") from error
                if len(self._text) - self._at > limit:
                    message = f"broken JSON, or an element of over {limit} characters; raise corpus.max_document_bytes"
                    raise BrokenRecord("too_long", message) from error
            except (ValueError, RecursionError) as error:
                # A number of thousands of digits, or thousands of brackets in one another.
                raise BrokenRecord("json", f"broken JSON ({error}); fix the file") from error
            self._read_on()

    def _undecodable(self) -> BrokenRecord:
        return BrokenRecord("encoding", not_decodable(self._encoding, "in this element"))

    def records_behind(self, count: int) -> int:
        """Return an estimate of the records in the rest of the text: as long as the first `count`, which end here."""
        before, behind = self._left_behind + self._at, len(self._text) - self._at
        try:
            while more := self._stream.read(READ_CHARACTERS):
                behind += len(more)
        except (*DAMAGE, OSError):
            # Only an estimate: what is behind the damage is not in it.
            pass
        return round(count * behind / max(1, before))


def _may_continue(error: json.JSONDecodeError) -> bool:
    """Return whether more text could make JSON of what broke off: it broke at its end, or inside a string."""
    return error.pos + LONGEST_PART >= len(error.doc) or error.msg.startswith("Unterminated string")


JSON_LINES = ReaderSpec(
    lines=LineFormat(
        _documents_of_lines,
        boundary=lambda file, settings: LINE_END,
        record_factor=RECORD_FACTOR,
        fields=_fields_of_lines,
    )
)
"""`.jsonl` and `.ndjson`: one object a line."""
JSON_VALUES = ReaderSpec(_texts_of_values, fields=_fields_of_values)
"""`.json`: an array, or values one after another."""
