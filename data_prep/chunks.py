"""Files into chunks of whole documents: cheap and sequential, so that the dear work can be done anywhere, in parallel.

A chunk of a file of lines is a range of bytes that ends at a document's border: for a plain local file only where it
lies, else the bytes themselves. A chunk of a table is rows. Where chunks are cut depends on the files and settings
alone, never on who works on them.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from configs.schema import CorpusSettings, Encoding
from data_prep.borders import Borders
from data_prep.faults import Fault, damage, log_cut_file
from data_prep.sources import DAMAGE, SourceFile, open_bytes
from data_prep.tables import RECORD_FACTOR, decodable, table_values

CHUNK_BYTES = 4_000_000
CHUNK_CHARACTERS = 1_500_000
CHUNK_ROWS = 50_000
BORDER_BYTES = 65_536
"""Bytes before the wished end of a chunk of a plain file in which a border is looked for."""


@dataclass(frozen=True)
class Position:
    """A place between two chunks, from which reading can go on."""

    file: int = 0
    """Number of the file among the corpus's files."""
    offset: int = 0
    """Bytes of its decompressed content, or rows, that lie before."""
    lines: int = 0
    """Line ends, or rows, that lie before."""
    inside: bool = False
    """Whether a document that was longer than allowed goes on here."""


@dataclass(frozen=True)
class ByteChunk:
    """A range of a file of lines."""

    file: int
    start: int
    end: int
    data: bytes | None
    """The bytes, or none: they lie in a plain local file from `start` to `end`."""
    starts_inside: bool
    """The first document is the rest of one that was cut for its length."""
    ends_inside: bool
    """The last document is cut for its length and goes on in the next chunk."""


@dataclass(frozen=True)
class RowChunk:
    """Rows of a table, or the damage that ended a file."""

    file: int
    start: int
    end: int
    values: tuple[object, ...]
    """The text of each row, or its Fault."""
    ends_file: bool = False
    """Nothing of the file follows: it is read to its end, or to where it is damaged."""


Chunk = ByteChunk | RowChunk


def chunks_of(
    files: Sequence[SourceFile], encodings: Sequence[Encoding], settings: CorpusSettings, start: Position
) -> Iterator[Chunk]:
    """Every chunk of `files` from `start` on, in order.

    Args:
        encodings: of each file.
    """
    for number in range(start.file, len(files)):
        here = start if number == start.file else Position(number)
        yield from chunks_of_file(files[number], encodings[number], settings, here)


def chunks_of_file(file: SourceFile, encoding: Encoding, settings: CorpusSettings, start: Position) -> Iterator[Chunk]:
    """Every chunk of file number `start.file` from `start` on, in order."""
    try:
        if file.format in ("text", "jsonl"):
            yield from _byte_chunks(file, encoding, start, settings)
        else:
            yield from _row_chunks(file, encoding, start, settings)
    except OSError as error:
        fault = Fault("compression", 0, f"cannot be read ({error.strerror or error}); fetch the file again")
        if settings.on_error == "skip":
            log_cut_file(file, fault)
        yield RowChunk(start.file, 0, 0, (fault,), ends_file=True)


class _Window:
    """The part of a stream that is looked at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.data = b""
        self.ended = False
        """Nothing follows `data`: the file ends, or its damage begins."""
        self.error: Exception | None = None
        """The damage."""

    @property
    def is_whole(self) -> bool:
        """Whether `data` reaches to the undamaged end of the file."""
        return self.ended and self.error is None

    def fill(self, length: int) -> None:
        """Read on until `data` has `length` bytes or the stream has ended."""
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
        """Leave `length` bytes behind."""
        while length > 0:
            self.fill(min(length, CHUNK_BYTES))
            if not self.data:
                return
            length -= len(self.data)
            self.data = b""


def _byte_chunks(file: SourceFile, encoding: Encoding, start: Position, settings: CorpusSettings) -> Iterator[Chunk]:
    """Chunks of a file of lines. Memory is bounded by the longest document allowed."""
    borders = Borders(file, settings.document, encoding)
    limit = max(CHUNK_BYTES, settings.longest_document * (RECORD_FACTOR if file.format == "jsonl" else 1))
    lies_plain = file.is_local and file.compression == "none"
    offset, inside = start.offset, start.inside
    with open_bytes(file) as stream:
        window = _Window(stream)
        if not lies_plain:
            window.skip(offset)
        while True:
            # Whoever encodes a chunk of a plain file reads it itself: here only its end is looked for.
            while lies_plain and (end := _border_near(stream, offset + CHUNK_BYTES, borders)) > offset:
                yield ByteChunk(start.file, offset, end, None, inside, False)
                offset, inside = end, False
            if lies_plain:
                stream.seek(offset)
                window = _Window(stream)
            window.fill(CHUNK_BYTES)
            length = len(window.data) if window.is_whole else borders.last(window.data)
            while length == 0 and not window.ended and len(window.data) <= limit:
                seen = len(window.data)
                window.fill(seen + CHUNK_BYTES)
                length = borders.first(window.data, seen)
                if length == 0 and window.is_whole:
                    length = len(window.data)
            cut = len(window.data) > limit and (length == 0 or length > limit)
            if cut:
                length = _character_border(window.data[:limit], encoding)
            # What follows the last border before damage is half a document, and is left.
            if length == 0:
                break
            data = None if lies_plain else window.data[:length]
            yield ByteChunk(start.file, offset, offset + length, data, inside, cut)
            window.data, offset, inside = window.data[length:], offset + length, cut
    if window.error is not None:
        fault = damage(file, window.error)
        if settings.on_error == "skip":
            log_cut_file(file, fault)
        yield RowChunk(start.file, offset, offset, (fault,), ends_file=True)


def _border_near(stream: BinaryIO, place: int, borders: Borders) -> int:
    """End of the last border shortly before `place`; 0 where there is none, or the file ends there."""
    first = max(0, place - BORDER_BYTES)
    stream.seek(first)
    data = stream.read(place - first)
    found = borders.last(data) if len(data) == place - first else 0
    return first + found if found else 0


def _character_border(data: bytes, encoding: Encoding) -> int:
    """The longest length of `data` that does not end inside a character."""
    decoder = codecs.getincrementaldecoder(decodable(encoding))()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return len(data)
    return len(data) - len(decoder.getstate()[0])


def _row_chunks(file: SourceFile, encoding: Encoding, start: Position, settings: CorpusSettings) -> Iterator[RowChunk]:
    """Chunks of a table, by about `CHUNK_BYTES` characters of text."""
    number, held = start.offset, 0
    values: list[object] = []
    for value in table_values(file, encoding, start.offset, settings):
        values.append(value)
        held += len(value) if isinstance(value, str) else 1
        if held >= CHUNK_CHARACTERS or len(values) >= CHUNK_ROWS:
            yield RowChunk(start.file, number, number + len(values), tuple(values))
            number, held, values = number + len(values), 0, []
    yield RowChunk(start.file, number, number + len(values), tuple(values), ends_file=True)
