"""Files into chunks of complete documents, and chunks into documents.

Cutting is cheap and sequential, so that the expensive work can be done anywhere, in parallel. A chunk of a file that
can be cut at line ends is a range of bytes that ends at a document's boundary: of a plain local file only the range,
else the bytes themselves. Of any other file it is the texts of records, read one after another. Where chunks are cut
depends on the files and settings alone, never on who works on them.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import BinaryIO, TypeVar

from malmoi.configs.corpus import CorpusSettings, Encoding, TextSettings
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.boundaries import Boundaries
from malmoi.data_prep.readers.errors import BrokenRecord, RecordError, damage, log_cut_file
from malmoi.data_prep.readers.records import not_decodable, unicode_text
from malmoi.data_prep.readers.source_file import DAMAGE, SourceFile, changed_while_read, open_bytes
from malmoi.data_prep.readers.spec import (
    FieldRecord,
    LineChunk,
    LineFormat,
    Lines,
    RawDocument,
    ReaderSpec,
    ReadRecords,
)
from malmoi.errors import UserError

CHUNK_BYTES = 4_000_000
CHUNK_CHARACTERS = 1_500_000
CHUNK_RECORDS = 50_000
BOUNDARY_BYTES = 65_536
"""Bytes before the wanted end of a chunk of a plain file in which a boundary is searched for."""
BOM = "\ufeff"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Position:
    """A place between two chunks, from which reading can continue."""

    file: int = 0
    """Number of the file among the corpus's files."""
    offset: int = 0
    """Bytes of its decompressed content, or records, before this place."""
    lines: int = 0
    """Line ends, or records, before this place."""
    inside: bool = False
    """Whether a document that is longer than allowed continues here."""


@dataclass(frozen=True)
class ByteChunk:
    """A range of a file that can be cut at line ends."""

    file: int
    start: int
    end: int
    data: bytes | None
    """The bytes, or none: those of a plain local file from `start` to `end`."""
    starts_inside: bool
    """The first document is the rest of one that was cut for its length."""
    ends_inside: bool
    """The last document is cut for its length and continues in the next chunk."""


@dataclass(frozen=True)
class RecordChunk:
    """Records of a file, or the damage that ended it."""

    file: int
    start: int
    end: int
    values: tuple[str | RecordError, ...]
    """The text of each record, or what is wrong with it."""
    ends_file: bool = False
    """Nothing of the file follows: it is read to its end, or to where it is damaged."""


Chunk = ByteChunk | RecordChunk


def chunks_of(files: Sequence[SourceFile], settings: CorpusSettings, start: Position) -> Iterator[Chunk]:
    """Yield every chunk of `files` from `start` on, in order."""
    for number in range(start.file, len(files)):
        here = start if number == start.file else Position(number)
        yield from chunks_of_file(files[number], settings, here)


def chunks_of_file(file: SourceFile, settings: CorpusSettings, start: Position) -> Iterator[Chunk]:
    """Yield every chunk of file number `start.file` from `start` on, in order."""
    reader = READERS[file.suffix]
    try:
        if reader.lines is not None:
            yield from _byte_chunks(file, reader.lines, start, settings)
        elif reader.records is not None:
            yield from _record_chunks(file, reader.records, start, settings)
    except OSError as error:
        broken = RecordError("compression", 0, f"cannot be read ({error.strerror or error}); fetch the file again")
        if settings.on_error == "skip":
            log_cut_file(file, broken)
        yield RecordChunk(start.file, 0, 0, (broken,), ends_file=True)


class _Window:
    """The part of a stream that is held in memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.data = b""
        self.ended = False
        """Nothing follows `data`: the file ends, or its damage begins."""
        self.error: Exception | None = None
        """The damage."""

    @property
    def is_complete(self) -> bool:
        """Whether `data` reaches to the undamaged end of the file."""
        return self.ended and self.error is None

    def fill(self, length: int) -> None:
        """Read until `data` has `length` bytes or the stream has ended."""
        pieces, missing = [self.data], length - len(self.data)
        read = getattr(self._stream, "read1", self._stream.read)
        while missing > 0 and not self.ended:
            try:
                piece = read(missing)
            except DAMAGE as error:
                self.error = error
            except OSError as error:
                if error.errno is not None:
                    raise
                self.error = error
            else:
                pieces.append(piece)
                missing -= len(piece)
                self.ended = not piece
            self.ended = self.ended or self.error is not None
        self.data = b"".join(pieces)

    def skip(self, length: int) -> None:
        """Read past `length` bytes."""
        while length > 0:
            self.fill(min(length, CHUNK_BYTES))
            if not self.data:
                return
            length -= len(self.data)
            self.data = b""


def _byte_chunks(file: SourceFile, reader: LineFormat, start: Position, settings: CorpusSettings) -> Iterator[Chunk]:
    """Yield chunks of a file that can be cut. Memory is bounded by the longest document allowed."""
    boundaries = Boundaries(reader.boundary(file, settings))
    limit = max(CHUNK_BYTES, settings.max_document_bytes * reader.record_factor)
    is_plain = file.is_local and file.is_read_as_stored
    offset, inside = start.offset, start.inside
    with open_bytes(file) as stream:
        window = _Window(stream)
        if not is_plain:
            window.skip(offset)
        while True:
            # Whoever encodes a chunk of a plain file reads it itself: here only its end is searched for.
            while is_plain and (end := _boundary_near(stream, offset + CHUNK_BYTES, boundaries)) > offset:
                yield ByteChunk(start.file, offset, end, None, inside, False)
                offset, inside = end, False
            if is_plain:
                stream.seek(offset)
                window = _Window(stream)
            window.fill(CHUNK_BYTES)
            length = len(window.data) if window.is_complete else boundaries.last(window.data)
            while length == 0 and not window.ended and len(window.data) <= limit:
                seen = len(window.data)
                window.fill(seen + CHUNK_BYTES)
                length = boundaries.first(window.data, seen)
                if length == 0 and window.is_complete:
                    length = len(window.data)
            cut = len(window.data) > limit and (length == 0 or length > limit)
            if cut:
                length = _character_boundary(window.data[:limit], file.codec)
            # What follows the last boundary before damage is half a document, and is left out.
            if length == 0:
                break
            data = None if is_plain else window.data[:length]
            yield ByteChunk(start.file, offset, offset + length, data, inside, cut)
            window.data, offset, inside = window.data[length:], offset + length, cut
    if window.error is not None:
        broken = damage(file, window.error)
        if settings.on_error == "skip":
            log_cut_file(file, broken)
        yield RecordChunk(start.file, offset, offset, (broken,), ends_file=True)


def _boundary_near(stream: BinaryIO, place: int, boundaries: Boundaries) -> int:
    """Return the end of the last boundary shortly before `place`; 0 where there is none, or the file ends there."""
    first = max(0, place - BOUNDARY_BYTES)
    stream.seek(first)
    data = stream.read(place - first)
    found = boundaries.last(data) if len(data) == place - first else 0
    return first + found if found else 0


def _character_boundary(data: bytes, codec: str) -> int:
    """Return the longest length of `data` that does not end inside a character."""
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return len(data)
    return len(data) - len(decoder.getstate()[0])


def _record_chunks(
    file: SourceFile, read: ReadRecords, start: Position, settings: CorpusSettings
) -> Iterator[RecordChunk]:
    """Yield chunks of a file that cannot be cut, by about `CHUNK_CHARACTERS` characters of text."""
    number, held = start.offset, 0
    values: list[str | RecordError] = []
    for value in _records_from(file, read, start.offset, settings):
        values.append(value)
        held += len(value) if isinstance(value, str) else 1
        if held >= CHUNK_CHARACTERS or len(values) >= CHUNK_RECORDS:
            yield RecordChunk(start.file, number, number + len(values), tuple(values))
            number, held, values = number + len(values), 0, []
    yield RecordChunk(start.file, number, number + len(values), tuple(values), ends_file=True)


def _records_from(
    file: SourceFile, read: ReadRecords, start: int, settings: CorpusSettings
) -> Iterator[str | RecordError]:
    """Yield the texts of records from number `start` on. An error behind which nothing can be read is the last."""
    for number, value in enumerate(until_damage(file, read(file, settings), settings, start), start + 1):
        if isinstance(value, RecordError):
            yield value
            continue
        try:
            yield unicode_text(value)
        except BrokenRecord as broken:
            yield broken.at(number)


def until_damage(
    file: SourceFile, records: Iterator[Item | RecordError], settings: CorpusSettings, start: int = 0
) -> Iterator[Item | RecordError]:
    """Yield the records of a file from number `start` on, errors with their number where they have no line.

    An error behind which nothing can be read is the last.
    """
    number = start
    try:
        for number, record in enumerate(islice(records, start, None), start + 1):
            if isinstance(record, RecordError) and not record.line:
                yield replace(record, line=number)
            else:
                yield record
        return
    except BrokenRecord as broken:
        last = broken.at(number + 1)
    except UnicodeDecodeError as error:
        last = RecordError("encoding", number + 1, not_decodable(file.encoding, str(error.reason)))
    except DAMAGE as error:
        last = damage(file, error)
    except OSError as error:
        if error.errno is not None:
            raise
        last = damage(file, error)
    if settings.on_error == "skip":
        log_cut_file(file, last)
    yield last


def bytes_of(chunk: Chunk, file: SourceFile) -> bytes:
    """Return the bytes of a chunk, read from the file where the chunk does not bring them; of records, none.

    Raises:
        UserError: the file has become shorter.
    """
    if isinstance(chunk, RecordChunk):
        return b""
    if chunk.data is not None:
        return chunk.data
    with open_bytes(file) as stream:
        stream.seek(chunk.start)
        data = stream.read(chunk.end - chunk.start)
    if len(data) < chunk.end - chunk.start:
        raise changed_while_read(file)
    return data


def line_count(chunk: Chunk, data: bytes) -> int:
    """Return the line ends of a chunk (LF, CR LF, or a CR alone) whose bytes are `data`, or its records."""
    if isinstance(chunk, RecordChunk):
        return len(chunk.values)
    return data.count(b"\n") + (data.count(b"\r") - data.count(b"\r\n") if b"\r" in data else 0)


def documents_of(
    chunk: Chunk, data: bytes, file: SourceFile, settings: TextSettings
) -> Iterator[RawDocument | RecordError]:
    """Yield every document and record error of a chunk, in order; blank documents are left out.

    Args:
        data: the chunk's `bytes_of`.
    """
    if isinstance(chunk, RecordChunk):
        found = _documents_of_records(chunk)
    else:
        reader = READERS[file.suffix].lines
        assert reader is not None
        lines = _decoded_lines(data, file, chunk.start)
        found = reader.documents(LineChunk(lines, chunk.starts_inside, chunk.ends_inside), settings)
    for document in found:
        if isinstance(document, RecordError):
            yield document
        elif document.text and not document.text.isspace():
            yield from _cut(document, settings.max_document_bytes)


def field_records_of(
    file: SourceFile, settings: CorpusSettings, names: tuple[str, ...]
) -> Iterator[FieldRecord | RecordError]:
    """Yield every record of a file with the fields `names` (none: all), or what is wrong with it, in order.

    `line` is that of the file, or the number of the record where the format has no lines.

    Raises:
        UserError: the files of this format have no fields.
    """
    reader = READERS[file.suffix]
    if reader.fields is not None:
        found = until_damage(file, reader.fields(file, settings, names), settings)
        for number, record in enumerate(found, 1):
            has_place = isinstance(record, RecordError) or record.line
            yield record if has_place else replace(record, line=number)
        return
    if reader.lines is None or reader.lines.fields is None:
        able = ", ".join(name for name, spec in READERS.items() if _has_fields(spec))
        raise UserError(f"{file.name}: its format has no fields that labels could be in; use {able}")
    lines = 0
    for chunk in chunks_of_file(file, settings, Position()):
        data = bytes_of(chunk, file)
        if isinstance(chunk, RecordChunk):
            yield from (value for value in chunk.values if isinstance(value, RecordError))
            continue
        content = LineChunk(_decoded_lines(data, file, chunk.start), chunk.starts_inside, chunk.ends_inside)
        for record in reader.lines.fields(content, settings):
            yield replace(record, line=lines + record.line)
        lines += line_count(chunk, data)


def _has_fields(reader: ReaderSpec) -> bool:
    return reader.fields is not None or (reader.lines is not None and reader.lines.fields is not None)


def _documents_of_records(chunk: RecordChunk) -> Iterator[RawDocument | RecordError]:
    for number, value in enumerate(chunk.values, 1):
        if isinstance(value, RecordError):
            yield replace(value, line=number if value.line else 0)
        else:
            yield RawDocument(value, number)


def _decoded_lines(data: bytes, file: SourceFile, start: int) -> Lines:
    """Yield lines without their ends. Only CR, LF and CR LF end a line: U+2028 and the like are text."""
    try:
        text = data.decode(file.codec)
    except UnicodeDecodeError:
        yield from _lines_one_by_one(data, file, start)
        return
    if start == 0:
        text = text.removeprefix(BOM)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    yield from enumerate(lines, 1)


def _lines_one_by_one(data: bytes, file: SourceFile, start: int) -> Lines:
    offset = start
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            text = line.decode(file.codec).rstrip("\r\n")
            yield number, text.removeprefix(BOM) if start == 0 and number == 1 else text
        except UnicodeDecodeError as error:
            place = f"byte {offset + error.start}"
            message = f"not {file.encoding.upper()} at {place}{_encoding_hint(line, file.encoding)}"
            yield number, RecordError("encoding", number, message)
        offset += len(line)


def _encoding_hint(line: bytes, encoding: Encoding) -> str:
    other, flag = ("utf-8", "UTF-8") if encoding != "utf-8" else ("cp949", "CP949")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "; it looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"
    try:
        line.decode(other)
    except UnicodeDecodeError:
        return "; find its encoding and convert it with `iconv -f ENCODING -t UTF-8`, or set corpus.on_error skip"
    return f"; it looks like {flag}: set corpus.encoding {other} or auto"


def _cut(document: RawDocument, max_bytes: int) -> Iterator[RawDocument]:
    """Yield a document in pieces of at most `max_bytes` bytes of UTF-8, each but the last marked as cut."""
    if len(document.text) * 4 <= max_bytes or len(encoded := document.text.encode()) <= max_bytes:
        yield document
        return
    start = 0
    while len(encoded) - start > max_bytes:
        end = start + max_bytes
        while end > start + 1 and encoded[end] & 0xC0 == 0x80:
            end -= 1
        yield RawDocument(encoded[start:end].decode(), document.line, is_cut=True)
        start = end
    yield RawDocument(encoded[start:].decode(), document.line, document.is_cut)
