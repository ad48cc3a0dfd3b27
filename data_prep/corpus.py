"""Readers: files of text in, documents out, one at a time."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from configs.errors import BadInput
from configs.schema import CorpusSettings

PACKAGE_PREFIX = "package:"
TEXT_SUFFIXES = (".txt",)
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
COMPRESSED_SUFFIXES = (".gz",)
BOM = "\ufeff"


@dataclass(frozen=True)
class Document:
    """One document and where it stands."""

    text: str
    place: str
    """`file:line`, for messages."""


def bare_suffix(file: Path) -> str:
    """The suffix that tells the format, a compression's suffix left out."""
    return (file.with_suffix("") if file.suffix in COMPRESSED_SUFFIXES else file).suffix


def is_readable_format(file: Path) -> bool:
    """Whether the name's suffix is that of a format with a reader."""
    return bare_suffix(file) in TEXT_SUFFIXES + JSON_LINES_SUFFIXES


def corpus_files(settings: CorpusSettings) -> list[Path]:
    """The files that `settings.input` names, sorted within a folder or glob, each once.

    Raises:
        BadInput: nothing is named, a path does not exist, or a format has no reader.
    """
    if not settings.input:
        raise BadInput("corpus.input is empty: name files, folders or globs of .txt or .jsonl")
    files: dict[Path, None] = {}
    for name in settings.input:
        for file in _files_of(name):
            files[file] = None
    return list(files)


def _files_of(name: str) -> list[Path]:
    if name.startswith(PACKAGE_PREFIX):
        path = Path(__file__).parent.parent / name.removeprefix(PACKAGE_PREFIX)
    else:
        path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and is_readable_format(file))
        if not found:
            raise BadInput(f"{path}: no .txt or .jsonl file (plain or .gz) in this folder")
        return found
    if not path.exists() and glob.has_magic(name):
        found = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not found:
            raise BadInput(f"{name}: no file matches; quote the pattern and check it with ls")
    else:
        found = [path]
    for file in found:
        if not file.exists():
            raise BadInput(f"{file}: no such file or folder")
        if not is_readable_format(file):
            raise BadInput(f"{file}: no reader for this format; use .txt, .jsonl or .ndjson, plain or .gz")
    return found


def read_documents(files: list[Path], settings: CorpusSettings) -> Iterator[Document]:
    """Every document of `files`, in order; blank ones are left out.

    Raises:
        BadInput: a file cannot be read, is no UTF-8, or holds a broken line; the message names the place.
    """
    for file in files:
        try:
            with _opened(file) as stream:
                yield from _documents_of(file, stream, settings)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{file}: damaged gzip ({error}); fetch or compress the file again") from error
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror or error})") from error


def _opened(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _documents_of(file: Path, stream: IO[bytes], settings: CorpusSettings) -> Iterator[Document]:
    if bare_suffix(file) in JSON_LINES_SUFFIXES:
        texts = _json_line_texts(file, stream, settings.text_field)
    elif settings.document == "line":
        texts = ((number, text.rstrip("\r\n")) for number, text in _lines(file, stream))
    elif settings.document == "paragraph":
        texts = _paragraphs(_lines(file, stream))
    else:
        texts = iter([(1, "".join(text for _, text in _lines(file, stream)))])
    for number, text in texts:
        if text.strip():
            yield Document(text, f"{file}:{number}")


def _lines(file: Path, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    offset = 0
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{file}:{number}: not UTF-8 at byte {offset + error.start}{_encoding_hint(line)}"
            ) from error
        yield number, text.removeprefix(BOM) if number == 1 else text
        offset += len(line)


def _encoding_hint(line: bytes) -> str:
    try:
        line.decode("cp949")
    except UnicodeDecodeError:
        return "; find its encoding and convert it with `iconv -t UTF-8`"
    return "; it looks like CP949: convert it with `iconv -f CP949 -t UTF-8`"


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    first = 1
    for number, text in lines:
        if text.strip():
            first = first if block else number
            block.append(text)
        elif block:
            yield first, "".join(block).rstrip("\r\n")
            block = []
    if block:
        yield first, "".join(block).rstrip("\r\n")


def _json_line_texts(file: Path, stream: IO[bytes], text_field: str) -> Iterator[tuple[int, str]]:
    for number, line in _lines(file, stream):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}:{number}: broken JSON ({error}); mend or delete the line") from error
        yield number, _text_of(record, text_field, f"{file}:{number}")


def _text_of(record: Any, text_field: str, place: str) -> str:
    value = record
    for name in text_field.split("."):
        if not isinstance(value, dict) or name not in value:
            has = f"it has {', '.join(map(repr, record))}" if isinstance(record, dict) else "it is no JSON object"
            raise BadInput(f"{place}: no field '{text_field}' ({has}); set corpus.text_field")
        value = value[name]
    if not isinstance(value, str):
        raise BadInput(f"{place}: field '{text_field}' holds {type(value).__name__}, no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{place}: half of a surrogate pair at character {error.start}; mend the escape or delete the line"
        ) from error
    return value
