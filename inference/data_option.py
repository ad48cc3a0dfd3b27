"""What `--data` names: a shard folder, or text."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from configs.schema import CorpusSettings, TextSettings
from data_prep.corpus import Document, corpus_files, read_documents
from data_prep.manifest import MANIFEST_FILE


def holds_shards(path: Path) -> bool:
    """Whether `path` is a shard folder, or a folder with one or more in it; anything else is text."""
    inside = (file for file in path.glob(f"*/{MANIFEST_FILE}") if not file.parent.name.startswith("."))
    return (path / MANIFEST_FILE).is_file() or any(inside)


def text_documents(path: str, reading: TextSettings) -> Iterator[Document]:
    """The documents of the file or folder `path`, read as `reading` says.

    Raises:
        BadInput: there is none, or one cannot be read.
    """
    settings = CorpusSettings(
        input=(path,), **{entry.name: getattr(reading, entry.name) for entry in fields(TextSettings)}
    )
    return read_documents(corpus_files(settings), settings)
