"""Files of text in, documents out, one after another: for whoever needs the text itself."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from configs.errors import BadInput
from configs.schema import CorpusSettings, Encoding
from data_prep.chunks import ByteChunk, Position, chunks_of_file
from data_prep.cleaning import Cleaner
from data_prep.decode import bytes_of, count_lines, documents_of
from data_prep.faults import Cause, Fault, causes_of, check_share, count_fault
from data_prep.fingerprint import encoding_of
from data_prep.sources import SourceFile, corpus_files

__all__ = ["Document", "SourceFile", "corpus_files", "fault_place", "read_documents"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One document and where it stands."""

    text: str
    place: str
    """`file:line`, or `file:row` for tables, for messages."""


def fault_place(name: str, fault: Fault, lines_before: int) -> str:
    """`file:line` of a fault, or the file alone where the fault is of the whole."""
    return f"{name}:{lines_before + fault.line}" if fault.line else name


def read_documents(
    files: Sequence[SourceFile], settings: CorpusSettings, encodings: Sequence[Encoding] | None = None
) -> Iterator[Document]:
    """Every document of `files`, cleaned and in order; blank ones are left out. Duplicates are not.

    Args:
        encodings: of each file, where they are known already.

    Raises:
        BadInput: a file cannot be read or holds a broken line, and `on_error` is stop; the message names the place.
            Or it is skip, and more is broken than `largest_skipped_share` allows: after the last document.
    """
    cleaner = Cleaner(settings)
    records, skipped = 0, Counter[Cause]()
    for number, file in enumerate(files):
        encoding = encodings[number] if encodings is not None else encoding_of(file, settings)
        lines = 0
        for chunk in chunks_of_file(file, encoding, settings, Position(number)):
            data = bytes_of(chunk, file) if isinstance(chunk, ByteChunk) else b""
            for found in documents_of(chunk, data, file, encoding, settings):
                records += 1
                if not isinstance(found, Fault):
                    text = cleaner.clean(found.text)
                    if text is not None:
                        yield Document(text, f"{file.name}:{lines + found.line}")
                elif settings.on_error == "stop":
                    raise BadInput(f"{fault_place(file.name, found, lines)}: {found.message}")
                else:
                    records += found.unreachable
                    count_fault(skipped, found)
            lines += count_lines(data) if isinstance(chunk, ByteChunk) else len(chunk.values)
    if skipped:
        log.warning("%d of %d records were skipped: %s", skipped.total(), records, causes_of(skipped))
        check_share(skipped, records, settings.largest_skipped_share)
