"""What a shard folder holds: counts, settings, and the size and checksum of every file. Written last."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.errors import BadInput, one_line
from data_prep.cleaning import Cleaned
from data_prep.faults import Cause
from data_prep.files import write_whole
from data_prep.fingerprint import SourceRecord

MANIFEST_FILE = "manifest.json"
Setting = str | int | float | bool
FORMAT_VERSION = 3
CHECKSUM = "checksum"
"""Key of `manifest.json` that holds the BLAKE2b of everything else in it."""


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written."""

    name: str
    bytes: int
    blake2b: str


@dataclass(frozen=True)
class SplitCounts:
    """What one split holds."""

    documents: int
    tokens: int
    """`<s>` and `</s>` of each document included."""
    bytes: int
    """Of the documents' text in UTF-8."""
    characters: int


@dataclass(frozen=True)
class Split:
    """One split: its shards by stem, in order, and its counts."""

    stems: tuple[str, ...]
    counts: SplitCounts


@dataclass(frozen=True)
class Manifest:
    """The whole shard folder."""

    format_version: int
    fingerprint: str
    tokenizer: str
    """Checksum of `tokenizer.json`; see `data_prep.encode.tokenizer_checksum`."""
    vocab_size: int
    settings: dict[str, Setting]
    """The settings that decide the shards' bytes, by dotted name."""
    sources: tuple[SourceRecord, ...]
    train: Split
    held_out: Split
    skipped: dict[Cause, int]
    """Broken lines and records that were left out, by cause; only causes that were met."""
    cleaned: dict[Cleaned, int]
    """Documents and pieces of text that cleaning took out, by reason; only reasons that were met."""
    cut: int
    """Times that a document was cut because it was longer than allowed."""
    files: tuple[FileRecord, ...]
    """Every file of the folder but the manifest."""


def file_checksum(file: Path) -> str:
    """BLAKE2b of a file's content, 128 bits, as hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def file_record(file: Path, name: str | None = None) -> FileRecord:
    """The record of a file as it lies on disk now, under `name` or its own."""
    return FileRecord(name or file.name, file.stat().st_size, file_checksum(file))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`, whole and seen onto the disk."""
    record = asdict(manifest)
    record[CHECKSUM] = _checksum_of(record)
    write_whole(folder / MANIFEST_FILE, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def _checksum_of(record: dict[str, object]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _as_split(record: dict[str, object]) -> Split:
    stems, counts = record["stems"], record["counts"]
    assert isinstance(stems, list) and isinstance(counts, dict)
    return Split(tuple(stems), SplitCounts(**counts))


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        BadInput: it is missing, changed, broken, or of another format version.
    """
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise BadInput(f"{file}: missing, so this is no finished shard folder; make one with `malmoi prepare`")
    try:
        record = json.loads(file.read_bytes())
        if record["format_version"] != FORMAT_VERSION:
            raise BadInput(
                f"{file}: format version {record['format_version']}, this Malmoi reads {FORMAT_VERSION}; prepare again"
            )
        if record.pop(CHECKSUM) != _checksum_of(record):
            raise BadInput(f"{file}: its content changed since it was written; delete the folder and prepare again")
        record["train"], record["held_out"] = _as_split(record["train"]), _as_split(record["held_out"])
        record["sources"] = tuple(SourceRecord(**source) for source in record["sources"])
        record["files"] = tuple(FileRecord(**written) for written in record["files"])
        return Manifest(**record)
    except KeyError as error:
        raise BadInput(f"{file}: no manifest of ours (it has no {error}); prepare the shards again") from error
    except (ValueError, TypeError, AssertionError) as error:
        raise BadInput(f"{file}: no manifest of ours ({one_line(error)}); prepare the shards again") from error


def shard_folder(path: Path) -> Path:
    """`path` itself where it holds a manifest, else the one folder in it that does.

    Raises:
        BadInput: there is none, or more than one.
    """
    if (path / MANIFEST_FILE).is_file():
        return path
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder")
    found = sorted(file.parent for file in path.glob(f"*/{MANIFEST_FILE}") if not file.parent.name.startswith("."))
    if len(found) != 1:
        what = "no shard folder" if not found else f"{len(found)} shard folders ({', '.join(f.name for f in found)})"
        raise BadInput(f"{path}: {what} here; name the folder that holds {MANIFEST_FILE}")
    return found[0]
