"""A JSON text or a table's cell into the text of a document, or into what is wrong with it."""

import io
import json
import re
from typing import Any

from configs.schema import Encoding
from data_prep.faults import BrokenRecord

UNDECODABLE = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not of the encoding."""


def parse_json(text: str) -> Any:
    """The value of a JSON text, however deep it is nested.

    Raises:
        BrokenRecord: it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        # The parser of the standard library recurses. This one does not, and is a hundred times slower.
        import ijson.backends.python as iterative_json

        try:
            return next(iter(iterative_json.items(io.BytesIO(text.encode(errors="surrogatepass")), "")))
        except (iterative_json.common.JSONError, ValueError, StopIteration) as error:
            raise BrokenRecord("json", f"broken JSON ({error}); mend or delete the line") from error
    except ValueError as error:
        raise BrokenRecord("json", f"broken JSON ({error}); mend or delete the line") from error


def text_of(record: Any, text_field: str) -> str:
    """The text in a field of a record; dots in `text_field` reach into nested objects.

    Raises:
        BrokenRecord: there is no such field, it holds no text, or half of a surrogate pair.
    """
    value = record
    for name in [text_field] if isinstance(record, dict) and text_field in record else text_field.split("."):
        if not isinstance(value, dict) or name not in value:
            has = f"it has {', '.join(map(repr, record))}" if isinstance(record, dict) else "it is no JSON object"
            raise BrokenRecord("field", f"no field '{text_field}' ({has}); set corpus.text_field")
        value = value[name]
    return checked_text(value, text_field)


def checked_text(value: object, text_field: str) -> str:
    """`value`, seen to be text that UTF-8 can hold.

    Raises:
        BrokenRecord: it is not.
    """
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise BrokenRecord("type", f"field '{text_field}' holds {kind}, no text; mend or delete the record")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BrokenRecord(
            "surrogate", f"half of a surrogate pair at character {error.start}; mend the escape or delete the line"
        ) from error
    return value


def is_undecodable(text: str) -> bool:
    """Whether a text that was decoded with `surrogateescape` holds bytes that are not of the encoding."""
    return not text.isascii() and UNDECODABLE.search(text) is not None


def not_decodable(encoding: Encoding, place: str) -> str:
    """What to say of such a text."""
    return f"not {encoding.upper()} ({place}); set corpus.encoding, or convert the file"
