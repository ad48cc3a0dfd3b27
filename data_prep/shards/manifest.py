"""What a shard folder holds: counts, settings, and the size and checksum of every file. Written last."""

import json
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from malmoi.atomic_io import write_atomic
from malmoi.checksums import FileRecord, checksum
from malmoi.configs.corpus import Encoding, TextSettings
from malmoi.data_prep.filters.cleaning import DROPPED, Cleaned
from malmoi.data_prep.readers.errors import Cause, check_error_rate, counts_by_name
from malmoi.errors import UserError, one_line

MANIFEST_FILE = "manifest.json"
Setting = str | int | float | bool
SplitName = Literal["train", "val"]
FORMAT_VERSION = 4
REMEDY = "delete the folder and prepare the shards again"
CHECKSUM = "checksum"
"""Key of `manifest.json` that holds the BLAKE2b of everything else in it."""


@dataclass(frozen=True)
class SourceRecord:
    """One file of the corpus as it was read."""

    name: str
    """Path or URL."""
    bytes: int
    """As stored, so compressed where the file is."""
    blake2b: str
    """`malmoi.checksums.checksum` of the stored bytes."""
    encoding: Encoding
    """How its text is encoded: as set, or as `auto` found. Parquet and Arrow are UTF-8 by definition."""


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
    """Everything about a shard folder."""

    format_version: int
    fingerprint: str
    tokenizer: str
    """Checksum of `tokenizer.json`; see `malmoi.data_prep.tokenizer.encode.tokenizer_checksum`."""
    vocab_size: int
    settings: dict[str, Setting]
    """The settings that decide the shards' bytes, by dotted name."""
    sources: tuple[SourceRecord, ...]
    train: Split
    val: Split
    skipped: dict[Cause, int]
    """Broken lines and records that were skipped, by cause; only causes that were met."""
    cleaned: dict[Cleaned, int]
    """Documents and pieces of text that cleaning removed, by reason; only reasons that were met."""
    cut: int
    """Times that a document was cut because it was longer than allowed."""
    files: tuple[FileRecord, ...]
    """Every file of the folder but the manifest."""

    def split(self, name: SplitName) -> Split:
        """Return the split called `name`."""
        return self.train if name == "train" else self.val


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` in one step, flushed to the disk."""
    record = asdict(manifest)
    record[CHECKSUM] = _checksum_of(record)
    write_atomic(
        folder / MANIFEST_FILE,
        (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"),
    )


def _checksum_of(record: dict[str, object]) -> str:
    return checksum(json.dumps(record, sort_keys=True).encode())


def _as_split(record: dict[str, object]) -> Split:
    stems, counts = record["stems"], record["counts"]
    assert isinstance(stems, list) and isinstance(counts, dict)
    return Split(tuple(stems), SplitCounts(**counts))


def manifest_changes(before: Manifest, now: Manifest) -> tuple[str, ...]:
    """Return what differs in what two shard folders were made of: files, settings and tokenizer, in words."""
    old, new = ({source.name: source for source in manifest.sources} for manifest in (before, now))
    changes = [
        *(f"{name} changed" for name in new if name in old and new[name] != old[name]),
        *(f"{name} added" for name in new if name not in old),
        *(f"{name} removed" for name in old if name not in new),
        *(
            f"{name} was {before.settings.get(name)} and is now {now.settings.get(name)}"
            for name in sorted({*before.settings, *now.settings})
            if before.settings.get(name) != now.settings.get(name)
        ),
    ]
    if before.tokenizer != now.tokenizer:
        changes.append("another tokenizer")
    return tuple(changes) or ("the order of the files changed",)


class NoShardFolder(UserError):
    """There is no shard folder where one is named."""


def read_manifest(folder: Path) -> Manifest:
    """Return what `folder/manifest.json` says.

    Raises:
        UserError: it is missing, changed, broken, or of another format version.
    """
    file = folder / MANIFEST_FILE
    if not _is_there(file):
        raise UserError(f"{file}: missing, so this is no finished shard folder; build one with `malmoi prepare`")
    try:
        record = json.loads(file.read_bytes())
        if record["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{file}: format version {record['format_version']}, this Malmoi reads {FORMAT_VERSION}; prepare again"
            )
        if record.pop(CHECKSUM) != _checksum_of(record):
            raise UserError(f"{file}: its content changed since it was written; prepare the shards again")
        record["train"], record["val"] = _as_split(record["train"]), _as_split(record["val"])
        record["sources"] = tuple(SourceRecord(**source) for source in record["sources"])
        record["files"] = tuple(FileRecord(**written) for written in record["files"])
        return Manifest(**record)
    except KeyError as error:
        raise UserError(f"{file}: no manifest of ours (it has no {error}); prepare the shards again") from error
    except (ValueError, TypeError, AssertionError, RecursionError) as error:
        raise UserError(f"{file}: no manifest of ours ({one_line(error)}); prepare the shards again") from error


def shard_folder(path: Path) -> Path:
    """Return `path` itself where it holds a manifest, else the one folder in it that does.

    Raises:
        NoShardFolder: there is none.
        UserError: there is more than one, or a folder cannot be read.
    """
    try:
        if _is_there(path / MANIFEST_FILE):
            return path
        folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
        found = sorted(folder for folder in folders if _is_there(folder / MANIFEST_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoShardFolder(f"{path}: no such folder; name a shard folder, as `malmoi prepare` prints it") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be read ({error.strerror}); change its permissions"
        ) from error
    if not found:
        raise NoShardFolder(f"{path}: no shard folder here; name the folder that holds {MANIFEST_FILE}")
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise UserError(
            f"{path}: {len(found)} shard folders ({names}) here; name the folder that holds {MANIFEST_FILE}"
        )
    return found[0]


def _is_there(file: Path) -> bool:
    """Return whether there is a file, where that can be seen; `Path.is_file` of Python 3.14 takes an error for no."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_skipped(manifest: Manifest, settings: TextSettings) -> None:
    """Check that no more of the corpus was skipped than `settings` allow.

    Raises:
        UserError: more was.
    """
    skipped = sum(manifest.skipped.values())
    if not skipped:
        return
    if settings.on_error == "stop":
        raise UserError(
            f"{skipped} broken records were skipped when these shards were built ({counts_by_name(manifest.skipped)}); "
            "fix them, or set corpus.on_error skip"
        )
    documents = manifest.train.counts.documents + manifest.val.counts.documents
    records = skipped + documents + sum(manifest.cleaned.get(name, 0) for name in DROPPED)
    check_error_rate(manifest.skipped, records, settings.max_error_rate)
