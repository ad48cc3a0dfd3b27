"""Rows of a file of JSON lines, each with its place for messages."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from malmoi.errors import UserError


def json_rows(file: Path, if_missing: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the objects of a file of JSON lines, plain or .gz, in UTF-8; blank lines are left out.

    Args:
        if_missing: what to do where the file is not there, for the message.

    Yields:
        The row, and its place as `FILE:LINE`.

    Raises:
        UserError: the file is missing or is none, is no UTF-8, holds no row, or a line is no JSON object.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: a folder, pipe or device and no file; {if_missing}")
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {if_missing}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 at byte {error.start}; convert it, as from CP949 with `iconv -f CP949 -t UTF-8`"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch or write it again") from error
    count = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}: no valid JSON ({error}); write one object a line") from error
        except RecursionError as error:
            raise UserError(f"{place}: nested too deeply to be a row; fix or delete the line") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: no JSON object; write one object a line")
        count += 1
        yield row, place
    if not count:
        raise UserError(f"{file}: holds no row; write one JSON object a line")
