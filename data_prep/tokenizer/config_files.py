"""The files beside `tokenizer.json`: checked as far as `AutoTokenizer` reads them, without `transformers`."""

import json
import stat
from pathlib import Path
from typing import Any

from malmoi.errors import UserError, one_line

CONFIG_FILE, SPECIAL_FILE, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MODEL_CONFIG_FILE, TEMPLATE_FILE = "config.json", "chat_template.jinja"
REMEDY = "copy it from where the tokenizer came from, or train the tokenizer again"


def check_config_files(folder: Path) -> None:
    """Check the files of a tokenizer folder, but for its vocabulary.

    Raises:
        UserError: one is damaged, or asks for code of its own.
    """
    for name in (CONFIG_FILE, SPECIAL_FILE, MODEL_CONFIG_FILE):
        settings = _object_in(folder / name)
        auto_map = settings.get("auto_map")
        if auto_map and (name == CONFIG_FILE or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)):
            raise UserError(
                f"{folder / name}: `auto_map` asks for code of the tokenizer's own, which is never run; delete that "
                "entry if tokenizer.json holds the tokenizer, else name another"
            )
        if name != MODEL_CONFIG_FILE:
            for token in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
                _token(settings.get(token), folder / name, token)
    for token, number in _object_in(folder / ADDED_FILE).items():
        if type(number) is not int:
            raise UserError(f"{folder / ADDED_FILE}: {token!r} has {number!r} for an id; {REMEDY}")
    _text_in(folder / TEMPLATE_FILE)


def special_token_named(folder: Path, name: str, default: str) -> str:
    """Return what the folder's configuration calls a special token such as `eos_token`, or `default`.

    Raises:
        UserError: the configuration is damaged.
    """
    for file in (folder / CONFIG_FILE, folder / SPECIAL_FILE):
        token = _token(_object_in(file).get(name), file, name)
        if token is not None:
            return token
    return default


def _token(value: object, file: Path, name: str) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    if isinstance(content, str) or value is None:
        return content if isinstance(content, str) else None
    raise UserError(f"{file}: {name} is {value!r}, no token; {REMEDY}")


def _object_in(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is no file."""
    text = _text_in(file)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged, no JSON ({one_line(error)}); {REMEDY}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: damaged, no JSON object; {REMEDY}")
    return found


def _text_in(file: Path) -> str | None:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file}: a folder, pipe or device and no file; {REMEDY}")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{file}: cannot be read ({why}); {REMEDY}") from error
