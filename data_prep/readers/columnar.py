"""Parquet and Arrow: one document a row, the text in a column or a field nested in it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from malmoi.configs.corpus import TextSettings
from malmoi.data_prep.readers.errors import BrokenFile, BrokenRecord, RecordError
from malmoi.data_prep.readers.records import text_or_error
from malmoi.data_prep.readers.source_file import SourceFile, open_bytes
from malmoi.data_prep.readers.spec import ReaderSpec

BATCH_ROWS = 256


def _texts_of_parquet(file: SourceFile, settings: TextSettings) -> Iterator[str | RecordError]:
    import pyarrow.parquet as pq  # late: it is slow to import, and workers never read tables

    with _format_errors(file), _seekable(file) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        column = _column(parquet.schema_arrow, settings.text_field)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=[column]):
            yield from _texts_of_batch(batch, column, settings.text_field)


def _texts_of_arrow(file: SourceFile, settings: TextSettings) -> Iterator[str | RecordError]:
    """Yield the texts of an Arrow file or stream. Batches of a plain local file are mapped, not read."""
    import pyarrow as pa  # late, as above

    is_plain = file.is_local and file.compression == "none"
    with _format_errors(file), pa.memory_map(file.name) if is_plain else _seekable(file) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        column = _column(reader.schema, settings.text_field)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from _texts_of_batch(batch.slice(start, BATCH_ROWS), column, settings.text_field)


@contextmanager
def _format_errors(file: SourceFile) -> Iterator[None]:
    """Make a broken file of what pyarrow says of content that it cannot read."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        message = f"no {file.suffix[1:]} file, or a damaged one ({error}); fetch or write it again"
        raise BrokenFile("format", message) from error


def _seekable(file: SourceFile) -> BinaryIO:
    """Open the decompressed file where one can seek in it: itself, or a temporary copy on disk."""
    stream = open_bytes(file)
    if file.compression == "none":
        return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with stream:
        shutil.copyfileobj(stream, copy, 1 << 20)
    copy.seek(0)
    return cast(BinaryIO, copy)


def _column(schema: Any, text_field: str) -> str:
    column = text_field if text_field in schema.names else text_field.split(".")[0]
    if column not in schema.names:
        has = ", ".join(map(repr, schema.names))
        raise BrokenRecord("field", f"no column '{text_field}' ({has}); set corpus.text_field")
    return column


def _texts_of_batch(batch: Any, column: str, text_field: str) -> Iterator[str | RecordError]:
    values = batch.column(batch.schema.get_field_index(column))
    # pyarrow follows the offsets of a damaged file to wherever they point, unless asked to validate them first.
    values.validate(full=True)
    for value in values.to_pylist():
        yield text_or_error({column: value}, text_field)


PARQUET = ReaderSpec(_texts_of_parquet, is_text=False)
ARROW = ReaderSpec(_texts_of_arrow, is_text=False)
"""`.arrow`: an Arrow file or stream, as folders saved by `datasets` hold them."""
