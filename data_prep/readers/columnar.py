"""Parquet and Arrow: one record a row, a field in a column or nested in one."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, TypeAlias, cast

from malmoi.configs.corpus import TextSettings
from malmoi.data_prep.readers.errors import BrokenFile, BrokenRecord, RecordError
from malmoi.data_prep.readers.records import text_or_error
from malmoi.data_prep.readers.source_file import SourceFile, open_bytes
from malmoi.data_prep.readers.spec import FieldRecord, ReaderSpec

BATCH_ROWS = 256
Batches: TypeAlias = Iterator[tuple[tuple[str, ...], list[dict[str, Any]]]]
ReadBatches: TypeAlias = Callable[[SourceFile, tuple[str, ...]], Batches]


def _texts_of_table(file: SourceFile, settings: TextSettings, batches: ReadBatches) -> Iterator[str | RecordError]:
    for names, batch in batches(file, (settings.text_field,)):
        if settings.text_field not in names and settings.text_field.split(".")[0] not in names:
            has = ", ".join(map(repr, names))
            raise BrokenRecord("field", f"no column '{settings.text_field}' ({has}); set corpus.text_field")
        for row in batch:
            yield text_or_error(row, settings.text_field)


def _fields_of_table(
    file: SourceFile, settings: TextSettings, names: tuple[str, ...], batches: ReadBatches
) -> Iterator[FieldRecord | RecordError]:
    for columns, batch in batches(file, names):
        if not _columns(columns, names):
            # A record without any of them, so that who asked can name the columns there are.
            yield FieldRecord({}, columns, 0)
            return
        for row in batch:
            yield FieldRecord(row, columns, 0)


def _parquet_batches(file: SourceFile, names: tuple[str, ...]) -> Batches:
    """Yield the names of all columns, and some rows with those of `names`; first no rows."""
    import pyarrow.parquet as pq  # late: it is slow to import, and workers never read tables

    with _format_errors(file), _seekable(file) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        every = tuple(parquet.schema_arrow.names)
        yield every, []
        columns = _columns(every, names)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=columns) if columns else ():
            yield every, _rows_of_batch(batch, columns)


def _arrow_batches(file: SourceFile, names: tuple[str, ...]) -> Batches:
    """Do the same for an Arrow file or stream. Batches of a plain local file are mapped, not read."""
    import pyarrow as pa  # late, as above

    is_plain = file.is_local and file.compression == "none"
    with _format_errors(file), pa.memory_map(file.name) if is_plain else _seekable(file) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        every = tuple(reader.schema.names)
        yield every, []
        columns = _columns(every, names)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield every, _rows_of_batch(batch.slice(start, BATCH_ROWS), columns)


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


def _columns(every: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """Return the columns that hold these fields (none: all); a name with dots may be of a field nested in a column."""
    if not names:
        return list(every)
    wanted = [name if name in every else name.split(".")[0] for name in names]
    return [name for name in dict.fromkeys(wanted) if name in every]


def _rows_of_batch(batch: Any, columns: list[str]) -> list[dict[str, Any]]:
    values = {name: batch.column(batch.schema.get_field_index(name)) for name in columns}
    for column in values.values():
        # pyarrow follows the offsets of a damaged file to wherever they point, unless asked to validate them first.
        column.validate(full=True)
    lists = [column.to_pylist() for column in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*lists, strict=True)]


PARQUET = ReaderSpec(
    partial(_texts_of_table, batches=_parquet_batches),
    fields=partial(_fields_of_table, batches=_parquet_batches),
    is_text=False,
)
ARROW = ReaderSpec(
    partial(_texts_of_table, batches=_arrow_batches),
    fields=partial(_fields_of_table, batches=_arrow_batches),
    is_text=False,
)
"""`.arrow`: an Arrow file or stream, as folders saved by `datasets` hold them."""
