"""JSON files that hold a checksum of themselves, so that no bit of one changes unnoticed."""

import json
from pathlib import Path
from typing import Any

from malmoi.checksums import checksum
from malmoi.errors import UserError, one_line

CHECKSUM = "checksum"
"""The last key: the BLAKE2b of everything else in the file."""


class DamagedFileError(UserError):
    """A file is no longer as it was written; its text names the file, what is wrong and the remedy."""


def checked_json(record: dict[str, Any]) -> bytes:
    """Return `record` as indented JSON in UTF-8, with its checksum as the last key."""
    text = json.dumps({**record, CHECKSUM: _own_checksum(record)}, indent=2, ensure_ascii=False) + "\n"
    # The bytes of a file's name that are no UTF-8 become JSON escapes.
    return text.encode(errors="backslashreplace")


def parse_checked_json(content: bytes) -> dict[str, Any]:
    """Return the record that `checked_json` was given.

    One without a checksum is of an older version, and is returned as it is.

    Raises:
        ValueError: it is no JSON object, or a byte of it is not as it was written.
    """
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    if not record:
        return record
    *entries, (last_key, last_value) = record.items()
    without_last = dict(entries)
    # The key itself may be what changed, of a file whose checksum is right.
    if last_key == CHECKSUM or last_value == _own_checksum(without_last):
        if checked_json(without_last) != content:
            raise ValueError("its content changed since it was written")
        return without_last
    return record


def read_checked_json(file: Path, remedy: str) -> dict[str, Any]:
    """Return the record of a file that `checked_json` made.

    Args:
        remedy: what to do about a damaged one, as the end of a sentence.

    Raises:
        DamagedFileError: it cannot be read, or is not as it was written.
    """
    try:
        return parse_checked_json(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{file}: damaged ({one_line(error)}); {remedy}") from error


def _own_checksum(record: dict[str, Any]) -> str:
    return checksum(json.dumps(record, sort_keys=True).encode())
