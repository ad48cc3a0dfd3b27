"""What a setting may be: its type in words, and a check of settings that were built in Python."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from malmoi.configs.ranges import RANGES
from malmoi.errors import UserError

PLAIN_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def setting_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of each setting of a dataclass by its dotted name, groups included."""
    types: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for entry in fields(kind):
        hint = types[prefix + entry.name] = hints[entry.name]
        if isinstance(hint, type) and is_dataclass(hint):
            types |= setting_types(hint, f"{prefix}{entry.name}.")
    return types


def setting_names(kind: type) -> list[str]:
    """Return the dotted names of all settings of a dataclass, groups included."""
    return list(setting_types(kind))


def describe_type(hint: Any) -> str:
    """Return what a setting of this type may be, in words."""
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        names = next((each for each in arguments if get_origin(each) is Literal), None)
        if names is not None and str in arguments:
            return f"{', '.join(get_args(names))}, or another registered name"
        return ", or ".join(map(describe_type, arguments))
    if get_origin(hint) is Literal:
        return " or ".join(filter(None, (", ".join(map(str, arguments[:-1])), str(arguments[-1]))))
    if get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each {describe_type(arguments[0])}, as [a, b]"
        return f"a list of {len(arguments)}, each {describe_type(arguments[0])}, as [a, b]"
    if get_origin(hint) is dict:
        return "a mapping, as {name: value}"
    if isinstance(hint, type) and is_dataclass(hint):
        return f"a group of {', '.join(entry.name for entry in fields(hint))}"
    return RANGES.get(hint) or PLAIN_TYPES.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def check_settings(settings: Any) -> None:
    """Check every value of a settings dataclass, however it was built, against its type and range.

    Raises:
        UserError: names the first setting whose value is not allowed, the value, and what is.
    """
    for name, value, hint in _misfits(settings, ""):
        raise UserError(f"{name} {value}: give {describe_type(hint)}; see --help")


def _misfits(settings: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and type of each setting whose value does not fit."""
    hints = get_type_hints(type(settings))
    for entry in fields(settings):
        name, value, hint = prefix + entry.name, getattr(settings, entry.name), hints[entry.name]
        arguments = get_args(hint)
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint):
            yield from _misfits(value, f"{name}.")
        elif get_origin(hint) is tuple and is_dataclass(arguments[0]) and _fits(value, hint):
            for number, each in enumerate(value):
                yield from _misfits(each, f"{name}[{number}].")
        elif not _fits(value, hint):
            yield name, value, hint


def _fits(value: Any, hint: Any) -> bool:
    arguments, origin = get_args(hint), get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return len(each) == len(value) and all(map(_fits, value, each))
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(entry, arguments[1]) for key, entry in value.items()
        )
    if hint in RANGES:
        return _in_range(value, hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _in_range(value: Any, number_type: Callable[[Any], Any]) -> bool:
    if not isinstance(value, (int, float)):
        return False  # a number as text would stay text
    try:
        number_type(value)
    except ValueError:
        return False
    return True
