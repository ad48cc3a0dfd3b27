"""Files of text in, documents out, one after another: for whoever needs the text itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from configs.errors import BadInput
from configs.schema import CorpusSettings, Encoding
from data_prep.chunks import ByteChunk, Position, RowChunk, chunks_of
from data_prep.cleaning import Cleaner
from data_prep.decode import bytes_of, count_lines, documents_of
from data_prep.faults import Fault
from data_prep.fingerprint import detect_encoding
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
    known: dict[int, Encoding] = dict(enumerate(encodings or ()))
    number, lines = -1, 0
    for chunk in chunks_of(list(files), settings, Position()):
        file = files[chunk.file]
        if chunk.file != number:
            number, lines = chunk.file, 0
        if number not in known:
            auto = settings.encoding == "auto" and file.format not in ("parquet", "arrow")
            known[number] = detect_encoding(file, settings) if auto else settings.encoding
        match chunk:
            case ByteChunk():
                data = bytes_of(chunk, file)
            case RowChunk():
                data = b""
            case _:
                assert_never(chunk)
        for found in documents_of(chunk, data, file, known[number], settings):
            if not isinstance(found, Fault):
                text = cleaner.clean(found.text)
                if text is not None:
                    yield Document(text, f"{file.name}:{lines + found.line}")
            elif settings.on_error == "stop":
                raise BadInput(f"{fault_place(file.name, found, lines)}: {found.message}")
        lines += count_lines(data) if isinstance(chunk, ByteChunk) else len(chunk.values)
