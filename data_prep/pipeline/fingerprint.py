"""What shards are made of: a content hash of each file, remembered by path, size and times of change.

The name of a shard folder is a hash over these, the tokenizer and the settings, so a changed file never meets shards of
its old content.
"""

import inspect
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from malmoi.atomic_io import write_atomic
from malmoi.checked_json import checked_json, parse_checked_json
from malmoi.checksums import checksum, file_checksum, stream_checksum
from malmoi.configs.corpus import CorpusSettings, Encoding
from malmoi.data_prep.pipeline.build_once import lock_if_possible
from malmoi.data_prep.readers import READERS, ReaderSpec
from malmoi.data_prep.readers.encoding import with_encoding
from malmoi.data_prep.readers.korean_codecs import COMPOSING_CP949
from malmoi.data_prep.readers.source_file import SourceFile, changed_while_read, open_raw, size_of
from malmoi.data_prep.shards.manifest import FORMAT_VERSION, Setting, SourceRecord
from malmoi.errors import UserError

MEMORY_FILE = ".source-hashes.json"
DECODERS: dict[Encoding, str] = {"cp949": COMPOSING_CP949}
"""What decodes an encoding, where it is not Python's codec of that name: shards depend on it."""
RACY_SECONDS = 2.0
"""A file changed this shortly before it was hashed may change again without a new time, so is not remembered."""


@dataclass(frozen=True)
class _Remembered:
    """A record and the stamp of the file when it was made."""

    stamp: str
    record: SourceRecord


def source_records(files: list[SourceFile], settings: CorpusSettings, memory: Path) -> tuple[SourceRecord, ...]:
    """Return the record of every file, in order; only files not remembered in the folder `memory` are read.

    Raises:
        UserError: a file cannot be read, or `auto` finds neither encoding and `on_error` is stop.
    """
    memory_file = memory / MEMORY_FILE
    try:
        memory.mkdir(parents=True, exist_ok=True)
        with lock_if_possible(memory / f"{MEMORY_FILE}.lock"):
            return _records(files, settings, memory_file)
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}; choose another file or folder") from error
    except OSError as error:
        raise UserError(f"{error.filename or memory}: cannot be read or written ({error.strerror or error})") from error


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
        write_atomic(memory_file, checked_json({"files": entries}))
    return tuple(known[file.name] for file in files)


def _read_memory(file: Path) -> dict[str, _Remembered]:
    try:
        entries = parse_checked_json(file.read_bytes())["files"]
        return {key: _Remembered(entry["stamp"], SourceRecord(**entry["record"])) for key, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _absolute(file: SourceFile) -> str:
    return str(file.path.absolute()) if file.is_local else file.name


def _lasting_stamp(file: SourceFile) -> str:
    """Return the stamp of a file if the same stamp will always mean the same content, or nothing."""
    stamp, changed = _seen(file)
    # A store that keeps no time of change: its files are hashed at every start.
    if changed is None or abs(time.time() - changed) < RACY_SECONDS:
        return ""
    return f"{stamp} {file.path.stat().st_ino}" if file.is_local else stamp


def stamps_of(files: Sequence[SourceFile]) -> tuple[str, ...]:
    """Return what changes when a file does, for each: its size, when its content was changed (which anybody can set
    back) and when anything of it was (which nobody can); of a URL, what its store knows of these, and its ETag. Empty
    where the file cannot be found. No inode, which some file systems give anew each time."""
    return tuple(map(_stamp, files))


def require_unchanged(
    files: Sequence[SourceFile], stamps: Sequence[str], records: Sequence[SourceRecord]
) -> tuple[str, ...]:
    """Check that files are as they were when `stamps_of` gave `stamps`, and return their stamps now.

    Where only the time of a change to anything is another, the content decides: new permissions or a hard link change
    that time too.

    Args:
        records: of the files' content when the stamps were taken.

    Raises:
        UserError: one is not.
    """
    now = []
    for file, stamp, record in zip(files, stamps, records, strict=True):
        if not file.is_local:
            import fsspec

            # Else it may return what it read when the folder was listed.
            fsspec.core.url_to_fs(file.name)[0].invalidate_cache()
        now.append(_stamp(file))
        if now[-1] != stamp and not (_is_as_dated(file, now[-1], stamp) and _holds(file, record)):
            raise changed_while_read(file)
    return tuple(now)


def _is_as_dated(file: SourceFile, stamp: str, before: str) -> bool:
    """Return whether the stamps of a local file say the same size and time of change of its content."""
    return file.is_local and bool(stamp) and stamp.rpartition(" ")[0] == before.rpartition(" ")[0]


def _holds(file: SourceFile, record: SourceRecord) -> bool:
    """Return whether a local file has the content that was recorded."""
    try:
        return size_of(file) == record.bytes and file_checksum(file.path) == record.blake2b
    except OSError:
        return False


def _stamp(file: SourceFile) -> str:
    try:
        return _seen(file)[0]
    except OSError:
        return ""


def _seen(file: SourceFile) -> tuple[str, float | None]:
    """Return the stamp of a file, and when it was last changed, in seconds since 1970, where that is known."""
    if file.is_local:
        status = file.path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        return stamp, max(status.st_mtime, status.st_ctime)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.name)
    description = filesystem.info(path)
    etag = description.get("ETag") or description.get("etag") or ""
    try:
        changed = filesystem.modified(path)
    except (NotImplementedError, OSError, KeyError):  # each store says in its own way that it keeps no time
        return f"{description.get('size')} {etag}", None
    return f"{description.get('size')} {changed.isoformat()} {etag}", changed.timestamp()


def _record(file: SourceFile, settings: CorpusSettings) -> SourceRecord:
    with open_raw(file) as stream:
        digest = stream_checksum(stream)
    return SourceRecord(file.name, size_of(file), digest, with_encoding(file, settings).encoding)


def reader_settings(files: Iterable[SourceFile]) -> dict[str, Setting]:
    """Return what tells versions of readers that are not Malmoi's own apart, by suffix: the shards depend on them."""
    versions = {suffix: _reader_version(READERS[suffix]) for suffix in sorted({file.suffix for file in files})}
    return {f"reader {suffix}": version for suffix, version in versions.items() if version}


def _reader_version(reader: ReaderSpec) -> str:
    """Return the name of a reader's function and the checksum of its file, or nothing for a reader of Malmoi's own."""
    function: object = reader.records or (reader.lines and reader.lines.documents)
    function = getattr(function, "func", function)  # of a functools.partial
    module = str(getattr(function, "__module__", ""))
    if module.startswith("malmoi."):
        return ""
    source = inspect.getsourcefile(sys.modules[module]) if module in sys.modules else None
    version = file_checksum(Path(source)) if source is not None and Path(source).is_file() else ""
    return f"{module}.{getattr(function, '__qualname__', '')} {version}"


def fingerprint(sources: Iterable[SourceRecord], tokenizer: str, settings: dict[str, Setting]) -> str:
    """Return 128 bits over everything that decides the shards' bytes: sources' content, tokenizer, settings, format."""
    parts = [FORMAT_VERSION, [[s.bytes, s.blake2b, DECODERS.get(s.encoding, s.encoding)] for s in sources]]
    parts += [tokenizer, settings]
    return checksum(json.dumps(parts, sort_keys=True).encode())
