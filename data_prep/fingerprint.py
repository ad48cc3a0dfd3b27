"""What the files of a corpus hold: a content hash of each, remembered by path, size and time of change.

The name of a shard folder is a hash over these, so a changed file never meets shards of its old content.
"""

import codecs
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.errors import BadInput
from configs.schema import CorpusSettings, Encoding
from data_prep.files import write_whole
from data_prep.once import lock_if_possible
from data_prep.sources import DAMAGE, SourceFile, changed_while_read, open_bytes, open_raw, size_of

MEMORY_FILE = ".source-hashes.json"
READ_BYTES = 1 << 20
RACY_SECONDS = 2.0
"""A file changed this shortly before it was hashed may change again without a new time, so is not remembered."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceRecord:
    """One file of the corpus as it was read."""

    name: str
    bytes: int
    """As stored, so compressed where the file is."""
    blake2b: str
    """BLAKE2b of the stored bytes, 128 bits, in hexadecimal."""
    encoding: Encoding
    """How its text is encoded: as set, or as `auto` found. Parquet and Arrow are UTF-8 by definition."""


@dataclass(frozen=True)
class _Remembered:
    """A record and what the file looked like when it was made."""

    stamp: str
    record: SourceRecord


def source_records(files: list[SourceFile], settings: CorpusSettings, memory: Path) -> tuple[SourceRecord, ...]:
    """The record of every file, in order; only files not remembered in the folder `memory` are read.

    Raises:
        BadInput: a file cannot be read, or `auto` finds neither encoding and `on_error` is stop.
    """
    memory_file = memory / MEMORY_FILE
    try:
        memory.mkdir(parents=True, exist_ok=True)
        with lock_if_possible(memory / f"{MEMORY_FILE}.lock"):
            return _records(files, settings, memory_file)
    except PermissionError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; choose another file or folder") from error
    except OSError as error:
        raise BadInput(f"{error.filename or memory}: cannot be read or written ({error.strerror or error})") from error


def _records(files: list[SourceFile], settings: CorpusSettings, memory_file: Path) -> tuple[SourceRecord, ...]:
    remembered = _read_memory(memory_file)
    known: dict[str, SourceRecord] = {}
    missing: list[tuple[SourceFile, str, str]] = []
    for file in files:
        key, stamp = f"{settings.encoding} {settings.on_error} {_absolute(file)}", _lasting_stamp(file)
        entry = remembered.get(key)
        if entry is not None and stamp and entry.stamp == stamp:
            known[file.name] = SourceRecord(file.name, entry.record.bytes, entry.record.blake2b, entry.record.encoding)
        else:
            missing.append((file, key, stamp))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (file, key, stamp), record in zip(
            missing, pool.map(lambda entry: _record(entry[0], settings), missing), strict=True
        ):
            known[file.name] = record
            if stamp and stamp == _lasting_stamp(file):
                remembered[key] = _Remembered(stamp, record)
    if missing:
        entries = {key: asdict(entry) for key, entry in remembered.items()}
        write_whole(memory_file, json.dumps(entries, indent=1, ensure_ascii=False).encode())
    return tuple(known[file.name] for file in files)


def _read_memory(file: Path) -> dict[str, _Remembered]:
    try:
        entries = json.loads(file.read_bytes())
        return {key: _Remembered(entry["stamp"], SourceRecord(**entry["record"])) for key, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _absolute(file: SourceFile) -> str:
    return str(file.path.absolute()) if file.is_local else file.name


def _lasting_stamp(file: SourceFile) -> str:
    """The stamp of a file where it stands for the content for good, or nothing."""
    stamp, changed = _seen(file)
    # A store that tells no time of change: its files are hashed at every start.
    if changed is None or abs(time.time() - changed) < RACY_SECONDS:
        return ""
    return f"{stamp} {file.path.stat().st_ino}" if file.is_local else stamp


def stamps_of(files: Sequence[SourceFile]) -> tuple[str, ...]:
    """What changes when a file does, for each: size and time of change; of a URL, what its store tells of these and its
    ETag. Empty where the file cannot be found. No inode, which some file systems give anew at every look."""
    return tuple(map(_stamp, files))


def require_unchanged(files: Sequence[SourceFile], stamps: Sequence[str]) -> None:
    """See that files are as they were when `stamps_of` gave `stamps`.

    Raises:
        BadInput: one is not.
    """
    for file, stamp in zip(files, stamps, strict=True):
        if not file.is_local:
            import fsspec

            # Else it may tell what it read when the folder was listed.
            fsspec.core.url_to_fs(file.name)[0].invalidate_cache()
        if _stamp(file) != stamp:
            raise changed_while_read(file)


def _stamp(file: SourceFile) -> str:
    try:
        return _seen(file)[0]
    except OSError:
        return ""


def _seen(file: SourceFile) -> tuple[str, float | None]:
    """The stamp of a file, and when it was last changed, in seconds since 1970, where that is told."""
    if file.is_local:
        status = file.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}", status.st_mtime
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.name)
    description = filesystem.info(path)
    etag = description.get("ETag") or description.get("etag") or ""
    try:
        changed = filesystem.modified(path)
    except (NotImplementedError, OSError, KeyError):  # each store says in its own way that it tells no time
        return f"{description.get('size')} {etag}", None
    return f"{description.get('size')} {changed.isoformat()} {etag}", changed.timestamp()


def _record(file: SourceFile, settings: CorpusSettings) -> SourceRecord:
    digest = hashlib.blake2b(digest_size=16)
    with open_raw(file) as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return SourceRecord(file.name, size_of(file), digest.hexdigest(), encoding_of(file, settings))


def encoding_of(file: SourceFile, settings: CorpusSettings) -> Encoding:
    """How the text of `file` is encoded: as set, as `auto` finds by reading it, or UTF-8 where its format says so.

    Raises:
        BadInput: see `detect_encoding`.
    """
    if file.format in ("parquet", "arrow"):
        return "utf-8"
    if settings.encoding != "auto":
        return settings.encoding
    encoding = detect_encoding(file, settings)
    log.info("%s: read as %s", file.name, encoding.upper())
    return encoding


def detect_encoding(file: SourceFile, settings: CorpusSettings) -> Encoding:
    """UTF-8 where the whole file decodes so, else CP949 where it does.

    Raises:
        BadInput: neither, and `on_error` is stop. Where it is skip, the file is read as UTF-8.
    """
    decoders = {name: codecs.getincrementaldecoder(name)() for name in ("utf-8", "cp949")}
    failed: dict[str, int] = {}
    read = 0
    try:
        with open_bytes(file) as stream:
            while True:
                block = stream.read(READ_BYTES)
                for name in [name for name in decoders if name not in failed]:
                    try:
                        decoders[name].decode(block, final=not block)
                    except UnicodeDecodeError as error:
                        failed[name] = read + max(error.start, 0)
                if not block or len(failed) == len(decoders):
                    break
                read += len(block)
    except (*DAMAGE, OSError) as error:
        # The reader tells of damage, with its place.
        if isinstance(error, OSError) and error.errno is not None:
            raise
    if "utf-8" not in failed:
        return "utf-8"
    if "cp949" not in failed:
        return "cp949"
    if settings.on_error == "skip":
        return "utf-8"
    places = ", ".join(f"{name.upper()} to byte {place}" for name, place in failed.items())
    raise BadInput(
        f"{file.name}: neither UTF-8 nor CP949 as a whole ({places}); convert it, or set corpus.encoding and "
        "corpus.on_error skip"
    )


def fingerprint(sources: Iterable[SourceRecord], tokenizer: str, settings: object, format_version: int) -> str:
    """128 bits over everything that decides the shards' bytes: sources' content, tokenizer, settings, format."""
    parts = [format_version, [[s.bytes, s.blake2b, s.encoding] for s in sources], tokenizer, settings]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
