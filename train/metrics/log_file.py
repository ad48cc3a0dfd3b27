"""`metrics.jsonl` and `samples.jsonl`: logs of one JSON object a line, each with the `step` that it is about.

A log only grows, except where a resume cuts it back to its checkpoint. A checkpoint records how much of each log there
was, so that a change in it is noticed.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from malmoi.atomic_io import write_atomic
from malmoi.checksums import FileRecord, file_checksum, file_record

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


def log_line(record: dict[str, Any]) -> bytes:
    """Return a record as a line of strict JSON, in which what is not finite is null."""
    line = json.dumps(_without_nonfinite(record), ensure_ascii=False, allow_nan=False) + "\n"
    # A path that is not UTF-8 holds lone surrogates, and their escapes are JSON's.
    return line.encode("utf-8", "backslashreplace")


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nonfinite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_line(file: Path, record: dict[str, Any]) -> None:
    """Add a record.

    Raises:
        OSError: the disk does not take it; it names the file.
    """
    try:
        with file.open("ab") as stream:
            stream.write(log_line(record))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def replace_line(file: Path, record: dict[str, Any], is_replaced: Callable[[dict[str, Any]], bool]) -> None:
    """Put a record in the place of those that it replaces, in one step, or at the end where there is none."""
    lines, is_placed = [], False
    for line, known in _lines(file):
        if known is None or not is_replaced(known):
            lines.append(line)
        elif not is_placed:
            lines.append(log_line(record))
            is_placed = True
    if is_placed:
        write_atomic(file, b"".join(lines))
    else:
        append_line(file, record)


def cut_back(file: Path, step: int) -> int:
    """Drop the records of steps after `step`, which will be done again, a half-written last line, and lines that are no
    records; return the number of the latter."""
    kept, damaged = [], 0
    for line, record in _lines(file):
        if record is None:
            damaged += line.endswith(b"\n")
        elif record["step"] <= step:
            kept.append(line)
    content = b"".join(kept)
    if file.is_file() and content != file.read_bytes():
        write_atomic(file, content)
    return damaged


def log_records(run: Path) -> tuple[FileRecord, ...]:
    """Return the logs of a run folder as they are now."""
    files = (run / METRICS_FILE, run / SAMPLES_FILE)
    return tuple(file_record(file) for file in files if file.is_file())


def changed_logs(run: Path, records: Iterable[FileRecord]) -> Iterator[str]:
    """Yield a line for each log that no longer begins as recorded."""
    for record in records:
        file = run / record.name
        if not file.is_file():
            yield f"{file}: missing; what was logged until here is lost"
        elif file.stat().st_size < record.bytes or file_checksum(file, record.bytes) != record.blake2b:
            yield f"{file}: changed since it was written; some of what it says may be wrong"


def _lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield the lines of a log, and the record of each; None: it is no record, or is not complete."""
    if not file.is_file():
        return
    # Read as bytes: a damaged line may be no UTF-8, and a sample may hold characters at which a text has line breaks.
    with file.open("rb") as stream:
        for line in stream:
            yield line, _record(line)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("step"), int) and line.endswith(b"\n")
    return record if is_record else None
