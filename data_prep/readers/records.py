"""A record into the text of a document, or into what is wrong with it."""

import re
from typing import Any

from malmoi.configs.corpus import Encoding
from malmoi.data_prep.readers.errors import BrokenRecord, RecordError

UNDECODABLE = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not of the encoding."""


def value_of(record: Any, field: str) -> Any:
    """Return the value of a field of a record; dots in its name reach into nested objects.

    Raises:
        KeyError: there is no such field.
    """
    value = record
    for name in [field] if isinstance(record, dict) and field in record else field.split("."):
        if not isinstance(value, dict) or name not in value:
            raise KeyError(field)
        value = value[name]
    return value


def text_of(record: Any, text_field: str) -> str:
    """Return the text in a field of a record; dots in `text_field` reach into nested objects.

    Raises:
        BrokenRecord: there is no such field, or it holds no text.
    """
    try:
        value = value_of(record, text_field)
    except KeyError:
        has = f"it has {', '.join(map(repr, record))}" if isinstance(record, dict) else "it is no JSON object"
        raise BrokenRecord("field", f"no field '{text_field}' ({has}); set corpus.text_field") from None
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise BrokenRecord("type", f"field '{text_field}' holds {kind}, no text; fix or delete the record")
    return value


def text_or_error(record: Any, text_field: str) -> str | RecordError:
    """Return `text_of` a record, or what is wrong with it, without its line."""
    try:
        return text_of(record, text_field)
    except BrokenRecord as broken:
        return broken.at(0)


def unicode_text(text: str) -> str:
    """Return `text`, checked to be text that UTF-8 can hold.

    Raises:
        BrokenRecord: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BrokenRecord(
            "surrogate", f"half of a surrogate pair at character {error.start}; fix the escape or delete the line"
        ) from error
    return text


def is_undecodable(text: str) -> bool:
    """Return whether a text that was decoded with `surrogateescape` holds bytes that are not of the encoding."""
    return not text.isascii() and UNDECODABLE.search(text) is not None


def not_decodable(encoding: Encoding, place: str) -> str:
    """Return the message for such a text."""
    return f"not {encoding.upper()} ({place}); set corpus.encoding, or convert the file"
