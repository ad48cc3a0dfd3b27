"""CSV and TSV: one record a row, the columns named by the header."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self, TextIO

from malmoi.configs.corpus import TextSettings
from malmoi.data_prep.readers.errors import BrokenRecord, RecordError
from malmoi.data_prep.readers.records import is_undecodable, not_decodable
from malmoi.data_prep.readers.source_file import SourceFile, open_text
from malmoi.data_prep.readers.spec import RECORD_FACTOR, FieldRecord, ReaderSpec


@dataclass(frozen=True)
class _Row:
    """A row of as many fields as the header has; the first is the header."""

    cells: list[str]
    line: int
    """At which it begins."""
    last_line: int


def _texts_of_rows(file: SourceFile, settings: TextSettings, delimiter: str) -> Iterator[str | RecordError]:
    """Yield the text of each row."""
    column = None
    for row in _rows(file, settings, delimiter):
        if isinstance(row, RecordError):
            yield replace(row, line=0)
        elif column is None:
            column = _column(row.cells, settings.text_field)
        elif is_undecodable(row.cells[column]):
            yield RecordError("encoding", 0, not_decodable(file.encoding, f"line {row.last_line}"))
        else:
            yield row.cells[column]


def fields_of_rows(
    file: SourceFile, settings: TextSettings, names: tuple[str, ...], delimiter: str
) -> Iterator[FieldRecord | RecordError]:
    """Yield each row with its fields, as texts; of several columns of a name, the last."""
    header: tuple[str, ...] | None = None
    for row in _rows(file, settings, delimiter):
        if isinstance(row, RecordError):
            yield row
        elif header is None:
            header = tuple(row.cells)
        elif any(is_undecodable(cell) for name, cell in zip(header, row.cells, strict=True) if name in names):
            yield RecordError("encoding", row.line, not_decodable(file.encoding, f"line {row.last_line}"))
        else:
            yield FieldRecord(dict(zip(header, row.cells, strict=True)), header, row.line)


def _rows(file: SourceFile, settings: TextSettings, delimiter: str) -> Iterator[_Row | RecordError]:
    """Yield the header, and each row or what is wrong with it, behind which reading continues with the next line.

    Raises:
        BrokenRecord: the header is broken.
    """
    limit = RECORD_FACTOR * settings.max_document_bytes
    csv.field_size_limit(limit)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if _quotes_are_text(file, settings, delimiter, limit) else csv.QUOTE_MINIMAL
    # Undecodable bytes become surrogates, which cost their own row alone.
    with open_text(file, errors="surrogateescape") as stream:
        lines = _BoundedLines(stream, limit)
        rows = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
        width = 0
        while True:
            lines_before = rows.line_num
            lines.begin_row()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                message = (
                    f"broken CSV ({error}, line {rows.line_num}); fix the quotes, or set corpus.quotes none where they "
                    "are text"
                )
                if not width:
                    raise BrokenRecord("csv", message) from error
                # A quote that is not closed takes all lines to where it ends; each may have been a row.
                unreachable = rows.line_num - lines_before - 1
                yield RecordError("csv", lines_before + 1, message, unreachable)
                continue
            except BrokenRecord as broken:
                if not width:
                    raise
                yield replace(broken.at(lines_before + 1), unreachable=rows.line_num - lines_before)
                continue
            if not width:
                width = len(row)
            if not row:
                continue
            if len(row) != width:
                message = f"{len(row)} fields under a header of {width} (line {rows.line_num}); fix the row"
                yield RecordError("csv", lines_before + 1, message)
            else:
                yield _Row(row, lines_before + 1, rows.line_num)


def _quotes_are_text(file: SourceFile, settings: TextSettings, delimiter: str, limit: int) -> bool:
    """Return whether double quotes are text: as set, or as the lines of a file with tabs show.

    They are where every line has as many fields as the header without quoting, and one has not with it: a field that
    holds a tab or a line end needs quotes, and its lines have other numbers of fields.
    """
    if settings.quotes != "auto" or delimiter != "\t":
        return settings.quotes == "none"
    tabs, is_broken = None, False
    with open_text(file, errors="surrogateescape") as stream:
        while line := stream.readline(limit + 1):
            if len(line) > limit:
                return False
            line = line.rstrip("\r\n")
            count = line.count(delimiter)
            tabs = count if tabs is None else tabs
            if line and count != tabs:
                return False
            is_broken = is_broken or ('"' in line and not _is_quoted_row(line, delimiter, tabs + 1))
    return is_broken


def _is_quoted_row(line: str, delimiter: str, width: int) -> bool:
    """Return whether a line by itself is a row of `width` fields, some of them in quotes."""
    try:
        return [len(row) for row in csv.reader([line], delimiter=delimiter, strict=True)] == [width]
    except csv.Error:
        return False


def _column(header: list[str], text_field: str) -> int:
    """Return which column holds the text: of several with its name, the last."""
    if text_field not in header:
        has = ", ".join(map(repr, header))
        raise BrokenRecord("field", f"no column '{text_field}' ({has}); set corpus.text_field")
    return len(header) - 1 - header[::-1].index(text_field)


class _BoundedLines:
    """The lines of a CSV file. One that is too long, or makes its row so, is an error; the next follows behind it."""

    def __init__(self, stream: TextIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._is_first, self._row = True, 0

    def begin_row(self) -> None:
        """Begin a row with the next line: the characters of its lines are counted together."""
        self._row = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._limit + 1)
        if not line:
            raise StopIteration
        if len(line) > self._limit:
            while line and not line.endswith(("\n", "\r")):
                line = self._stream.readline(self._limit + 1)
            message = f"a line of more than {self._limit} characters; raise corpus.max_document_bytes"
            raise BrokenRecord("too_long", message)
        self._row += len(line)
        if self._row > self._limit:
            message = f"a row of more than {self._limit} characters; fix its quotes, or raise corpus.max_document_bytes"
            raise BrokenRecord("too_long", message)
        is_first, self._is_first = self._is_first, False
        return line.removeprefix("\ufeff") if is_first else line


CSV = ReaderSpec(partial(_texts_of_rows, delimiter=","), fields=partial(fields_of_rows, delimiter=","))
"""`.csv`, RFC 4180 with any line end; the first row is the header."""
TSV = ReaderSpec(partial(_texts_of_rows, delimiter="\t"), fields=partial(fields_of_rows, delimiter="\t"))
"""`.tsv`: the same, parted by tabs."""
