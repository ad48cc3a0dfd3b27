"""Files of text in, documents out, one after another: for whoever needs the text itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from configs.errors import BadInput
from configs.schema import CorpusSettings, Encoding
from data_prep.chunks import ByteChunk, Position, chunks_of_file
from data_prep.cleaning import Cleaner
from data_prep.decode import bytes_of, count_lines, documents_of
from data_prep.faults import Fault
from data_prep.fingerprint import encoding_of
from data_prep.sources import SourceFile, corpus_files

__all__ = ["Document", "SourceFile", "corpus_files", "fault_place", "read_documents"]


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
    """
    cleaner = Cleaner(settings)
    for number, file in enumerate(files):
        encoding = encodings[number] if encodings is not None else encoding_of(file, settings)
        lines = 0
        for chunk in chunks_of_file(file, encoding, settings, Position(number)):
            data = bytes_of(chunk, file) if isinstance(chunk, ByteChunk) else b""
            for found in documents_of(chunk, data, file, encoding, settings):
                if not isinstance(found, Fault):
                    text = cleaner.clean(found.text)
                    if text is not None:
                        yield Document(text, f"{file.name}:{lines + found.line}")
                elif settings.on_error == "stop":
                    raise BadInput(f"{fault_place(file.name, found, lines)}: {found.message}")
            lines += count_lines(data) if isinstance(chunk, ByteChunk) else len(chunk.values)
