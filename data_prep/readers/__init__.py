"""Files to documents: `READERS` holds one reader for each suffix."""

from malmoi.data_prep.readers.columnar import ARROW, PARQUET
from malmoi.data_prep.readers.delimited import CSV, TSV
from malmoi.data_prep.readers.json_records import JSON_LINES, JSON_VALUES
from malmoi.data_prep.readers.spec import ReaderSpec
from malmoi.data_prep.readers.text import TEXT
from malmoi.registry import Registry

__all__ = ["READERS", "ReaderSpec"]

READERS: Registry[ReaderSpec] = Registry(
    {
        ".txt": TEXT,
        ".jsonl": JSON_LINES,
        ".ndjson": JSON_LINES,
        ".json": JSON_VALUES,
        ".csv": CSV,
        ".tsv": TSV,
        ".parquet": PARQUET,
        ".arrow": ARROW,
    }
)
"""The reader for each suffix, in lower case. Every suffix may also be followed by one of `COMPRESSIONS`."""
