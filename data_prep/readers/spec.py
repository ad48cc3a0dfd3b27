"""What a reader is: how the files of one format become documents."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from malmoi.configs.corpus import TextSettings
from malmoi.data_prep.readers.errors import RecordError
from malmoi.data_prep.readers.source_file import SourceFile

RECORD_FACTOR = 4
"""Bytes that a JSON record or a row of CSV may take for each byte that its text may take: escapes take up to four times
the text."""


@dataclass(frozen=True)
class RawDocument:
    """The text of one document as it was read."""

    text: str
    line: int
    """Line of its chunk, or number of its record, at which it begins, counted from 1."""
    is_cut: bool = False
    """Whether it continues in the next document because it is longer than allowed."""


@dataclass(frozen=True)
class FieldRecord:
    """One record of a file with its fields, for labeled examples."""

    fields: Mapping[str, Any]
    """Values by name: of CSV text, else as the format holds them. Of a table at least those that were asked for."""
    names: tuple[str, ...]
    """All fields that the record has, or all columns of the table, for messages."""
    line: int
    """Line at which it begins, of its chunk where a file is cut, counted from 1; 0: the number of the record."""


Lines: TypeAlias = Iterator[tuple[int, str | RecordError]]
"""Numbers of lines, from 1, and the lines without their ends, or what is wrong with them."""


@dataclass(frozen=True)
class LineChunk:
    """A part of a file, decoded: complete documents, but where one was longer than allowed."""

    lines: Lines
    starts_inside: bool
    """The first document is the rest of one that was cut for its length."""
    ends_inside: bool
    """The last document is cut for its length and continues in the next chunk."""


@dataclass(frozen=True)
class LineFormat:
    """A format whose files are cut into chunks at line ends; workers parse the chunks in parallel."""

    documents: Callable[[LineChunk, TextSettings], Iterator[RawDocument | RecordError]]
    """Yields the documents of a chunk in order, their text free of surrogates. Runs in workers."""
    boundary: Callable[[SourceFile, TextSettings], re.Pattern[bytes] | None]
    """Returns the pattern of bytes behind which a document may begin, a line end and what else it takes; none: a file
    is one document."""
    record_factor: int = 1
    """Bytes that a record may take for each byte of `corpus.max_document_bytes`."""
    fields: Callable[[LineChunk, TextSettings], Iterator[FieldRecord | RecordError]] | None = None
    """Yields the records of a chunk with their fields; none: its lines have no fields."""


ReadRecords: TypeAlias = Callable[[SourceFile, TextSettings], Iterator[str | RecordError]]
"""Yields the text of each record of a file, or what is wrong with it, in order. Bounded memory is its own concern."""
ReadFields: TypeAlias = Callable[[SourceFile, TextSettings, tuple[str, ...]], Iterator[FieldRecord | RecordError]]
"""Yields each record of a file with the fields of the given names, dots reaching into objects, or with all where none
is given, or what is wrong with it, in order."""


@dataclass(frozen=True)
class ReaderSpec:
    """How the files of a suffix are read: by `records`, from beginning to end, or by `lines`, where they can be cut.

    With `records`, one process reads the file, and workers clean and encode what it yields. `open_bytes` or `open_text`
    open a file wherever it is, compressed or not. A broken record is yielded as a `RecordError`, whose line is filled
    in; where reading cannot continue, `BrokenRecord` is raised. Errors of decompression and of decoding, and OSError,
    need not be caught: they count as damage of the file. Each call must yield the same: a resumed build reads the file
    again and passes over the records that it has.
    """

    records: ReadRecords | None = None
    lines: LineFormat | None = None
    fields: ReadFields | None = None
    """Reads records with their fields, where they are not read by `lines`; none: they have no fields."""
    is_text: bool = True
    """Whether `corpus.encoding` applies to it; otherwise the format itself says how its text is encoded."""

    def __post_init__(self) -> None:
        if (self.records is None) == (self.lines is None):
            raise ValueError("a ReaderSpec takes either `records` or `lines`")
