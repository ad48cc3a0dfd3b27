"""Files of text in, documents out, one after another: for whoever needs the text itself."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.filters.cleaning import Cleaner
from malmoi.data_prep.readers.chunks import Position, bytes_of, chunks_of_file, documents_of, line_count
from malmoi.data_prep.readers.encoding import with_encoding
from malmoi.data_prep.readers.errors import (
    Cause,
    RecordError,
    check_error_rate,
    count_error,
    counts_by_name,
    error_place,
)
from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One document and its place."""

    text: str
    place: str
    """`file:line`, or `file:record` for tables, for messages."""


def read_documents(files: Sequence[SourceFile], settings: CorpusSettings) -> Iterator[Document]:
    """Yield every document of `files`, cleaned and in order; blank ones are left out. Duplicates are not.

    Raises:
        UserError: a file cannot be read or holds a broken line, and `on_error` is stop; the message names the place.
            Or it is skip, and more is broken than `max_error_rate` allows: after the last document.
    """
    cleaner = Cleaner(settings)
    records, skipped = 0, Counter[Cause]()
    for number, unread in enumerate(files):
        file = with_encoding(unread, settings)
        lines = 0
        for chunk in chunks_of_file(file, settings, Position(number)):
            data = bytes_of(chunk, file)
            for found in documents_of(chunk, data, file, settings):
                records += 1
                if not isinstance(found, RecordError):
                    text = cleaner.clean(found.text)
                    if text is not None:
                        yield Document(text, f"{file.name}:{lines + found.line}")
                elif settings.on_error == "stop":
                    raise UserError(f"{error_place(file, found, lines)}: {found.message}")
                else:
                    records += found.unreachable
                    count_error(skipped, found)
            lines += line_count(chunk, data)
    if skipped:
        log.warning("%d of %d records were skipped: %s", skipped.total(), records, counts_by_name(skipped))
        check_error_rate(skipped, records, settings.max_error_rate)
