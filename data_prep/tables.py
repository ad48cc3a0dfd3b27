"""Readers of what has no lines to be cut at: CSV, JSON arrays, Parquet and Arrow. One value a row, in order."""

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO, Self, cast

from configs.schema import CorpusSettings, Encoding
from data_prep.faults import BrokenRecord, Fault, damage, log_cut_file
from data_prep.json_text import JsonText
from data_prep.records import is_undecodable, not_decodable, text_of
from data_prep.sources import DAMAGE, SourceFile, open_bytes

BATCH_ROWS = 256
RECORD_FACTOR = 4
"""Bytes that a JSON or CSV record may take for each that its text may: escapes take up to four times the text."""


def table_values(file: SourceFile, encoding: Encoding, start: int, settings: CorpusSettings) -> Iterator[object]:
    """The text of each row from `start` on, or a Fault. A fault behind which nothing can be read is the last."""
    read = {"csv": _csv_rows, "tsv": _csv_rows, "json": _json_values, "parquet": _parquet_rows, "arrow": _arrow_rows}
    records = read[file.format](file, encoding, settings)
    number = start
    try:
        for number, record in enumerate(islice(records, start, None), start + 1):
            if isinstance(record, Fault):
                yield replace(record, line=number)
                continue
            try:
                yield text_of(record, settings.text_field)
            except BrokenRecord as broken:
                yield broken.at(number)
        return
    except BrokenRecord as broken:
        last = broken.at(number + 1)
    except DAMAGE as error:
        last = damage(file, error)
    except OSError as error:
        if error.errno is not None:
            raise
        last = damage(file, error)
    except Exception as error:
        if type(error).__module__ != "pyarrow.lib":
            raise
        last = Fault("format", 0, f"no {file.format} file, or a damaged one ({error}); fetch or write it again")
    if settings.on_error == "skip":
        log_cut_file(file, last)
    yield last


def _limit(settings: CorpusSettings) -> int:
    return RECORD_FACTOR * settings.longest_document


def _csv_rows(file: SourceFile, encoding: Encoding, settings: CorpusSettings) -> Iterator[object]:
    """Rows as dictionaries by the header. After a broken row, reading goes on with the next line.

    Undecodable bytes become surrogates, which the check of the text finds.
    """
    csv.field_size_limit(_limit(settings))
    with open_bytes(file) as stream:
        lines = _CsvLines(stream, encoding, _limit(settings))
        rows = csv.reader(lines, delimiter="\t" if file.format == "tsv" else ",", strict=True)
        header: list[str] | None = None
        while True:
            lines_before = rows.line_num
            lines.begin_row()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                message = f"broken CSV ({error}, line {rows.line_num}); mend the quotes"
                if header is None:
                    raise BrokenRecord("csv", message) from error
                # A quote that is not closed takes all lines to where it ends; each may have been a row.
                yield Fault("csv", 0, message, unreachable=rows.line_num - lines_before - 1)
                continue
            except BrokenRecord as broken:
                if header is None:
                    raise
                yield replace(broken.at(0), unreachable=rows.line_num - lines_before)
                continue
            if header is None:
                header = row
                if settings.text_field not in header:
                    has = ", ".join(map(repr, header))
                    raise BrokenRecord("field", f"no column '{settings.text_field}' ({has}); set corpus.text_field")
            elif not row:
                continue
            elif len(row) != len(header):
                message = f"{len(row)} fields under a header of {len(header)} (line {rows.line_num}); mend the row"
                yield Fault("csv", 0, message)
            else:
                record = dict(zip(header, row, strict=True))
                if is_undecodable(record[settings.text_field]):
                    yield Fault("encoding", 0, not_decodable(encoding, f"line {rows.line_num}"))
                else:
                    yield record


class _CsvLines:
    """The lines of a CSV file. One that is too long, or makes its row so, is an error; behind it the next follows."""

    def __init__(self, stream: BinaryIO, encoding: Encoding, limit: int) -> None:
        # Line ends stay as they are: the reader wants to see those inside of quotes.
        self._stream = io.TextIOWrapper(stream, decodable(encoding), errors="surrogateescape", newline="")
        self._limit, self._is_first, self._row = limit, True, 0

    def begin_row(self) -> None:
        """Tell that a row begins with the next line: the characters of its lines are counted together."""
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
            message = f"a line of more than {self._limit} characters; raise corpus.longest_document"
            raise BrokenRecord("too_long", message)
        self._row += len(line)
        if self._row > self._limit:
            message = f"a row of more than {self._limit} characters; mend its quotes, or raise corpus.longest_document"
            raise BrokenRecord("too_long", message)
        is_first, self._is_first = self._is_first, False
        return line.removeprefix("\ufeff") if is_first else line


def decodable(encoding: Encoding) -> str:
    """The codec of an encoding. CP949's and EUC-KR's are Python's; `auto` was decided before."""
    return "utf-8" if encoding == "auto" else encoding


def _json_values(file: SourceFile, encoding: Encoding, settings: CorpusSettings) -> Iterator[object]:
    """The elements of a JSON array, or, without one, JSON values one after another. Holds about one at a time.

    Behind broken JSON nobody can tell whether `{` begins an element or lies within one, so reading ends there.
    """
    with open_bytes(file) as raw:
        text = JsonText(io.TextIOWrapper(raw, decodable(encoding), errors="surrogateescape", newline=""), encoding)
        count = 0
        try:
            in_array = text.take("[")
            closed = in_array and text.take("]")
            while not closed and not text.at_end():
                value = text.value(_limit(settings))
                count += 1
                yield value
                if in_array and not text.take(","):
                    closed = text.take("]")
                    if not closed and not text.at_end():
                        raise BrokenRecord("json", "no comma or bracket after an element; mend the file")
            if in_array and not closed:
                raise BrokenRecord("json", "the file ends inside the array; fetch it again")
            if not text.at_end():
                raise BrokenRecord("json", "text after the end of the array; delete it")
        except BrokenRecord as broken:
            if settings.on_error == "skip":
                broken.unreachable = text.records_behind(count + 1)
            raise


def _seekable(file: SourceFile) -> BinaryIO:
    """The decompressed file where one can seek in it: itself, or a temporary copy on disk."""
    stream = open_bytes(file)
    if file.compression == "none":
        return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with stream:
        shutil.copyfileobj(stream, copy, 1 << 20)
    copy.seek(0)
    return cast(BinaryIO, copy)


def _parquet_rows(file: SourceFile, _: Encoding, settings: CorpusSettings) -> Iterator[object]:
    import pyarrow.parquet as pq  # late: it is slow to import, and workers never read tables

    with _seekable(file) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        column = _column(parquet.schema_arrow, settings.text_field)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=[column]):
            yield from _rows_of(batch, column)


def _arrow_rows(file: SourceFile, _: Encoding, settings: CorpusSettings) -> Iterator[object]:
    """Rows of an Arrow file or stream. Batches of a plain local file are mapped, not read."""
    import pyarrow as pa  # late, as above

    with pa.memory_map(file.name) if file.is_local and file.compression == "none" else _seekable(file) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        column = _column(reader.schema, settings.text_field)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from _rows_of(batch.slice(start, BATCH_ROWS), column)


def _column(schema: Any, text_field: str) -> str:
    column = text_field if text_field in schema.names else text_field.split(".")[0]
    if column not in schema.names:
        has = ", ".join(map(repr, schema.names))
        raise BrokenRecord("field", f"no column '{text_field}' ({has}); set corpus.text_field")
    return column


def _rows_of(batch: Any, column: str) -> Iterator[object]:
    values = batch.column(batch.schema.get_field_index(column))
    # pyarrow follows the offsets of a damaged file to wherever they lead, unless asked to look first.
    values.validate(full=True)
    for value in values.to_pylist():
        yield {column: value}
