"""Readers of what has no lines to be cut at: CSV, JSON arrays, Parquet and Arrow. One value a row, in order."""

import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, cast

from configs.schema import CorpusSettings, Encoding
from data_prep.faults import BrokenRecord, Fault, damage
from data_prep.records import text_of
from data_prep.sources import DAMAGE, SourceFile, open_bytes

BATCH_ROWS = 256
READ_CHARACTERS = 1_000_000
RECORD_FACTOR = 4
"""Bytes that a JSON or CSV record may take for each that its text may: escapes take up to four times the text."""
BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


def table_values(file: SourceFile, encoding: Encoding, start: int, settings: CorpusSettings) -> Iterator[object]:
    """The text of each row from `start` on, or a Fault. A fault of the file as a whole, line 0, is the last."""
    read = {"csv": _csv_rows, "tsv": _csv_rows, "json": _json_values, "parquet": _parquet_rows, "arrow": _arrow_rows}
    records = read[file.format](file, encoding, settings)
    number = start
    try:
        for number, record in enumerate(islice(records, start, None), start + 1):
            if isinstance(record, Fault):
                yield Fault(record.cause, number, record.message)
                continue
            try:
                yield text_of(record, settings.text_field)
            except BrokenRecord as broken:
                yield broken.at(number)
    except BrokenRecord as broken:
        yield broken.at(number + 1)
    except DAMAGE as error:
        yield damage(file, error)
    except OSError as error:
        if error.errno is not None:
            raise
        yield damage(file, error)
    except Exception as error:
        if type(error).__module__ != "pyarrow.lib":
            raise
        yield Fault("format", 0, f"no {file.format} file, or a damaged one ({error}); fetch or write it again")


def _limit(settings: CorpusSettings) -> int:
    return RECORD_FACTOR * settings.longest_document


def _csv_rows(file: SourceFile, encoding: Encoding, settings: CorpusSettings) -> Iterator[object]:
    """Rows as dictionaries by the header. Undecodable bytes become surrogates, which the check of the text finds."""
    csv.field_size_limit(_limit(settings))
    with open_bytes(file) as stream:
        rows = csv.reader(
            _csv_lines(stream, encoding, settings), delimiter="\t" if file.format == "tsv" else ",", strict=True
        )
        header: list[str] | None = None
        try:
            for row in rows:
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
                    if _is_undecodable(record[settings.text_field]):
                        yield Fault(
                            "encoding",
                            0,
                            f"not {encoding.upper()} (line {rows.line_num}); set corpus.encoding, or convert the file",
                        )
                    else:
                        yield record
        except csv.Error as error:
            raise BrokenRecord("csv", f"broken CSV ({error}, line {rows.line_num}); mend the quotes") from error


def _csv_lines(stream: BinaryIO, encoding: Encoding, settings: CorpusSettings) -> Iterator[str]:
    limit, codec = _limit(settings), decodable(encoding)
    for number, line in enumerate(iter(lambda: stream.readline(limit + 1), b"")):
        if len(line) > limit:
            raise BrokenRecord("too_long", f"a line of more than {limit} bytes; raise corpus.longest_document")
        text = line.decode(codec, errors="surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text


def _is_undecodable(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text) if not text.isascii() else False


def decodable(encoding: Encoding) -> str:
    """The codec of an encoding. CP949's and EUC-KR's are Python's; `auto` was decided before."""
    return "utf-8" if encoding == "auto" else encoding


def _json_values(file: SourceFile, encoding: Encoding, settings: CorpusSettings) -> Iterator[object]:
    """The elements of a JSON array, or, without one, JSON values one after another. Holds about one at a time."""
    with open_bytes(file) as raw:
        text = _JsonText(io.TextIOWrapper(raw, decodable(encoding), newline=""))
        try:
            in_array = text.take("[")
            closed = in_array and text.take("]")
            while not closed and not text.at_end():
                yield text.value(_limit(settings))
                if in_array and not text.take(","):
                    closed = text.take("]")
                    if not closed and not text.at_end():
                        raise BrokenRecord("json", "no comma or bracket after an element; mend the file")
            if in_array and not closed:
                raise BrokenRecord("json", "the file ends inside the array; fetch it again")
            if not text.at_end():
                raise BrokenRecord("json", "text after the end of the array; delete it")
        except UnicodeDecodeError as error:
            raise BrokenRecord(
                "encoding", f"not {encoding.upper()} ({error.reason}); set corpus.encoding, or convert the file"
            ) from error


class _JsonText:
    """A JSON text that is read as far as it is needed."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream
        beginning = stream.read(READ_CHARACTERS)
        self._text = beginning.removeprefix("\ufeff")
        self._at = 0
        self._ended = not beginning

    def _read_on(self) -> None:
        """Leave behind what was used, and at least double what is held."""
        more = self._stream.read(max(READ_CHARACTERS, len(self._text) - self._at))
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
        """Step over one JSON value of at most about `limit` characters."""
        self._skip_blanks()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                # A number at the end of what is held may go on.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self._ended or isinstance(error, RecursionError):
                    raise BrokenRecord("json", f"broken JSON ({error}); mend the file") from error
                if len(self._text) - self._at > limit:
                    message = f"broken JSON, or an element of over {limit} characters; raise corpus.longest_document"
                    raise BrokenRecord("too_long", message) from error
            self._read_on()


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
    for value in batch.column(batch.schema.get_field_index(column)).to_pylist():
        yield {column: value}
