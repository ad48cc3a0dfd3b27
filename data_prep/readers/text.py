"""Plain text: a document is a line, a paragraph (a block between blank lines), or the file.

Labeled examples in it are a table with tabs, as NSMC's.
"""

import re
from collections.abc import Iterator
from functools import partial

from malmoi.configs.corpus import TextSettings
from malmoi.data_prep.readers.boundaries import LINE_END, blank_lines
from malmoi.data_prep.readers.delimited import fields_of_rows
from malmoi.data_prep.readers.errors import RecordError
from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.data_prep.readers.spec import LineChunk, LineFormat, RawDocument, ReaderSpec


def _boundary(file: SourceFile, settings: TextSettings) -> re.Pattern[bytes] | None:
    match settings.document:
        case "line":
            return LINE_END
        case "paragraph":
            return blank_lines(file.codec)
        case "file":
            return None


def _documents(chunk: LineChunk, settings: TextSettings) -> Iterator[RawDocument | RecordError]:
    match settings.document:
        case "line":
            return _lines(chunk)
        case "paragraph":
            return _paragraphs(chunk)
        case "file":
            return _file(chunk)


def _lines(chunk: LineChunk) -> Iterator[RawDocument | RecordError]:
    last: RawDocument | RecordError | None = None
    for number, text in chunk.lines:
        if last is not None:
            yield last
        last = text if isinstance(text, RecordError) else RawDocument(text, number)
    if last is not None:
        yield RawDocument(last.text, last.line, chunk.ends_inside) if isinstance(last, RawDocument) else last


def _paragraphs(chunk: LineChunk) -> Iterator[RawDocument | RecordError]:
    block: list[str] = []
    first, is_broken = 1, False
    for number, text in chunk.lines:
        if isinstance(text, RecordError):
            yield text
            is_broken = True
        elif text and not text.isspace():
            first = first if block else number
            block.append(text)
        else:
            if block and not is_broken:
                yield RawDocument("\n".join(block), first)
            block, is_broken = [], False
    if block and not is_broken:
        yield RawDocument("\n".join(block), first, chunk.ends_inside)


def _file(chunk: LineChunk) -> Iterator[RawDocument | RecordError]:
    texts: list[str] = []
    for _, text in chunk.lines:
        if isinstance(text, RecordError):
            yield text
            return
        texts.append(text)
    yield RawDocument("\n".join(texts), 1, chunk.ends_inside)


TEXT = ReaderSpec(lines=LineFormat(_documents, _boundary), fields=partial(fields_of_rows, delimiter="\t"))
"""`.txt`, by `corpus.document`."""
