"""CSV and TSV: one document a row, the text in the column that the header names."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Self, TextIO

from malmoi.configs.corpus import TextSettings
from malmoi.data_prep.readers.errors import BrokenRecord, RecordError
from malmoi.data_prep.readers.records import is_undecodable, not_decodable
from malmoi.data_prep.readers.source_file import SourceFile, open_text
from malmoi.data_prep.readers.spec import RECORD_FACTOR, ReaderSpec


def _texts_of_rows(file: SourceFile, settings: TextSettings, delimiter: str) -> Iterator[str | RecordError]:
    """Yield the text of each row. After a broken row, reading continues with the next line."""
    limit = RECORD_FACTOR * settings.max_document_bytes
    csv.field_size_limit(limit)
    # Undecodable bytes become surrogates, which cost their own row alone.
    with open_text(file, errors="surrogateescape") as stream:
        lines = _BoundedLines(stream, limit)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        width, column = 0, 0
        while True:
            lines_before = rows.line_num
            lines.begin_row()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                message = f"broken CSV ({error}, line {rows.line_num}); fix the quotes"
                if not width:
                    raise BrokenRecord("csv", message) from error
                # A quote that is not closed takes all lines to where it ends; each may have been a row.
                yield RecordError("csv", 0, message, unreachable=rows.line_num - lines_before - 1)
                continue
            except BrokenRecord as broken:
                if not width:
                    raise
                yield replace(broken.at(0), unreachable=rows.line_num - lines_before)
                continue
            if not width:
                width, column = len(row), _column(row, settings.text_field)
            elif not row:
                continue
            elif len(row) != width:
                message = f"{len(row)} fields under a header of {width} (line {rows.line_num}); fix the row"
                yield RecordError("csv", 0, message)
            elif is_undecodable(row[column]):
                yield RecordError("encoding", 0, not_decodable(file.encoding, f"line {rows.line_num}"))
            else:
                yield row[column]


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


CSV = ReaderSpec(partial(_texts_of_rows, delimiter=","))
"""`.csv`, RFC 4180 with any line end; the first row is the header."""
TSV = ReaderSpec(partial(_texts_of_rows, delimiter="\t"))
"""`.tsv`: the same, parted by tabs."""
