"""A chunk into documents: strict decoding, line ends, units, JSON. What cannot be read becomes a fault."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from configs.schema import CorpusSettings, Encoding
from data_prep.chunks import ByteChunk, Chunk
from data_prep.faults import BrokenRecord, Fault
from data_prep.records import parse_json, text_of
from data_prep.sources import SourceFile, changed_while_read, open_bytes
from data_prep.tables import RECORD_FACTOR, decodable

BOM = "\ufeff"


@dataclass(frozen=True)
class Found:
    """The text of one document as it was read."""

    text: str
    line: int
    """Line of its chunk, or row of its table, at which it begins, counted from 1."""
    is_cut: bool = False
    """Whether it goes on in the next document because it was longer than allowed."""


def bytes_of(chunk: ByteChunk, file: SourceFile) -> bytes:
    """The bytes of a chunk, read from the file where the chunk does not bring them.

    Raises:
        BadInput: the file has become shorter.
    """
    if chunk.data is not None:
        return chunk.data
    with open_bytes(file) as stream:
        stream.seek(chunk.start)
        data = stream.read(chunk.end - chunk.start)
    if len(data) < chunk.end - chunk.start:
        raise changed_while_read(file)
    return data


def count_lines(data: bytes) -> int:
    """Line ends in `data`: LF, CR LF, or a CR alone."""
    return data.count(b"\n") + (data.count(b"\r") - data.count(b"\r\n") if b"\r" in data else 0)


def documents_of(
    chunk: Chunk, data: bytes, file: SourceFile, encoding: Encoding, settings: CorpusSettings
) -> Iterator[Found | Fault]:
    """Every document and fault of a chunk, in order; blank documents are left out.

    Args:
        data: the bytes of a ByteChunk; not looked at for rows.
        encoding: of this file.
    """
    found = _of_bytes(chunk, data, file, encoding, settings) if isinstance(chunk, ByteChunk) else _of_rows(chunk.values)
    for document in found:
        if isinstance(document, Fault):
            yield document
        elif document.text and not document.text.isspace():
            yield from _cut(document, settings.longest_document)


def _of_rows(values: tuple[object, ...]) -> Iterator[Found | Fault]:
    for number, value in enumerate(values, 1):
        if isinstance(value, Fault):
            yield replace(value, line=number if value.line else 0)
        else:
            assert isinstance(value, str)
            yield Found(value, number)


def _of_bytes(
    chunk: ByteChunk, data: bytes, file: SourceFile, encoding: Encoding, settings: CorpusSettings
) -> Iterator[Found | Fault]:
    lines = _decoded_lines(data, decodable(encoding), chunk.start)
    if file.format == "jsonl":
        return _json_lines(chunk, lines, settings)
    if settings.document == "line":
        return _line_documents(chunk, lines)
    if settings.document == "paragraph":
        return _paragraphs(chunk, lines)
    return _whole(chunk, lines)


def _decoded_lines(data: bytes, codec: str, start: int) -> Iterator[tuple[int, str | Fault]]:
    """Lines without their ends. Only CR, LF and CR LF end a line: U+2028 and the like are text."""
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        yield from _lines_one_by_one(data, codec, start)
        return
    if start == 0:
        text = text.removeprefix(BOM)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    yield from enumerate(lines, 1)


def _lines_one_by_one(data: bytes, codec: str, start: int) -> Iterator[tuple[int, str | Fault]]:
    offset = start
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            text = line.decode(codec).rstrip("\r\n")
            yield number, text.removeprefix(BOM) if start == 0 and number == 1 else text
        except UnicodeDecodeError as error:
            place = f"byte {offset + error.start}"
            yield number, Fault("encoding", number, f"not {codec.upper()} at {place}{_encoding_hint(line, codec)}")
        offset += len(line)


def _encoding_hint(line: bytes, codec: str) -> str:
    other, flag = ("utf-8", "UTF-8") if codec != "utf-8" else ("cp949", "CP949")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "; it looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"
    try:
        line.decode(other)
    except UnicodeDecodeError:
        return "; find its encoding and convert it with `iconv -f ENCODING -t UTF-8`, or set corpus.on_error skip"
    return f"; it looks like {flag}: set corpus.encoding {other} or auto"


def _line_documents(chunk: ByteChunk, lines: Iterator[tuple[int, str | Fault]]) -> Iterator[Found | Fault]:
    last: Found | Fault | None = None
    for number, text in lines:
        if last is not None:
            yield last
        last = text if isinstance(text, Fault) else Found(text, number)
    if last is not None:
        yield Found(last.text, last.line, is_cut=chunk.ends_inside) if isinstance(last, Found) else last


def _paragraphs(chunk: ByteChunk, lines: Iterator[tuple[int, str | Fault]]) -> Iterator[Found | Fault]:
    block: list[str] = []
    first, is_broken = 1, False
    for number, text in lines:
        if isinstance(text, Fault):
            yield text
            is_broken = True
        elif text and not text.isspace():
            first = first if block else number
            block.append(text)
        else:
            if block and not is_broken:
                yield Found("\n".join(block), first)
            block, is_broken = [], False
    if block and not is_broken:
        yield Found("\n".join(block), first, is_cut=chunk.ends_inside)


def _whole(chunk: ByteChunk, lines: Iterator[tuple[int, str | Fault]]) -> Iterator[Found | Fault]:
    texts: list[str] = []
    for _, text in lines:
        if isinstance(text, Fault):
            yield text
            return
        texts.append(text)
    yield Found("\n".join(texts), 1, is_cut=chunk.ends_inside)


def _json_lines(
    chunk: ByteChunk, lines: Iterator[tuple[int, str | Fault]], settings: CorpusSettings
) -> Iterator[Found | Fault]:
    too_long = (
        f"a record of more than {RECORD_FACTOR * settings.longest_document} bytes; raise corpus.longest_document, "
        "which preparing needs memory for, or divide the record"
    )
    held: tuple[int, str | Fault] | None = None
    for number, text in lines:
        if held is not None:
            yield from _json_line(*held, settings)
        # The rest of a record that was cut for its length was counted where it began.
        held = None if chunk.starts_inside and number == 1 else (number, text)
    if held is not None and chunk.ends_inside:
        yield Fault("too_long", held[0], too_long)
    elif held is not None:
        yield from _json_line(*held, settings)


def _json_line(number: int, text: str | Fault, settings: CorpusSettings) -> Iterator[Found | Fault]:
    if isinstance(text, Fault):
        yield text
    elif text and not text.isspace():
        try:
            yield Found(text_of(parse_json(text), settings.text_field), number)
        except BrokenRecord as broken:
            yield broken.at(number)


def _cut(document: Found, longest: int) -> Iterator[Found]:
    """A document in pieces of at most `longest` bytes, each but the last marked as cut."""
    if len(document.text) * 4 <= longest or len(encoded := document.text.encode()) <= longest:
        yield document
        return
    start = 0
    while len(encoded) - start > longest:
        end = start + longest
        while end > start + 1 and encoded[end] & 0xC0 == 0x80:
            end -= 1
        yield Found(encoded[start:end].decode(), document.line, is_cut=True)
        start = end
    yield Found(encoded[start:].decode(), document.line, document.is_cut)
