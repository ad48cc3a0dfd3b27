"""From a command line, YAML and Python to frozen settings; an unknown name is an error that says the nearest one."""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.renamed import unknown_setting
from malmoi.configs.run import RunSettings
from malmoi.configs.validate import check_settings, describe_type, setting_names, setting_types
from malmoi.configs.yaml_settings import (
    SettingPlace,
    as_plain,
    as_yaml,
    places_in_yaml,
    read_yaml_text,
    settings_as_yaml,
)
from malmoi.errors import UserError, nearest_name_hint, one_line

__all__ = [
    "check_settings",
    "config_path",
    "errors_name_lines",
    "load_config",
    "load_finetune_config",
    "parse_settings",
    "preset_names",
    "setting_names",
    "settings_as_yaml",
    "without_switch",
]

PRESETS = Path(__file__).parent
Settings = TypeVar("Settings")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def preset_names() -> list[str]:
    """Return the names that `--config` takes besides a path."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def config_path(name: str) -> Path:
    """Return the YAML file at the path `name`, or the preset of that name; `configs/NAME.yaml` names a preset anywhere.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    preset = name.removeprefix("configs/").removesuffix(".yaml")
    if preset in preset_names():
        return PRESETS / f"{preset}.yaml"
    hint = nearest_name_hint(preset, preset_names())
    raise UserError(f"{name}: no such file, and no preset of that name{hint} Presets: {', '.join(preset_names())}")


@dataclass
class _Origins:
    """Where settings were given, for messages."""

    files: dict[str, SettingPlace] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)
    """Settings that a flag or Python gives too."""

    def prefix(self, name: str, value: str | None) -> str:
        """Return `FILE:LINE: ` where a file gave this value of a setting."""
        place = self.files.get(name)
        if place is None or (name in self.overridden and place.value != value):
            return ""
        return f"{place.line}: "


def parse_settings(
    kind: type[Settings],
    argv: Sequence[str],
    prog: str,
    description: str,
    lists: Sequence[str] = (),
    positional: str | None = None,
) -> Settings:
    """Parse `argv` into the dataclass `kind`: `--config FILE_OR_PRESET`, then `--dotted.name VALUE` over it.

    Args:
        lists: names that take several values in a row, as in `--input a b c`.
        positional: the name of the setting that a first bare word stands for.

    Raises:
        UserError: a setting is unknown, or a value is not of its type or out of its range.
    """
    types = setting_types(kind)
    if positional is not None and argv and not argv[0].startswith("-"):
        argv = [f"--{positional}", *argv]
    words, origins = _expanded(argv, types, lists)
    return _parsed(kind, words, types, origins, prog, description)


@contextmanager
def errors_name_lines(kind: type, argv: Sequence[str], lists: Sequence[str] = ()) -> Iterator[None]:
    """Have errors of the block that begin with a setting of `kind` name the line of the file that gives it.

    Args:
        argv: a command line that `parse_settings` took.
    """
    try:
        yield
    except UserError as error:
        types = setting_types(kind)
        named = re.match(r"[a-z_.]+(?=[ :])", str(error))
        if named is None or named[0] not in types:
            raise
        _, origins = _expanded(argv, types, lists)
        raise UserError(f"{origins.prefix(named[0], None)}{error}") from error


def _parsed(
    kind: type[Settings],
    words: Sequence[str],
    types: Mapping[str, Any],
    origins: _Origins,
    prog: str,
    description: str,
) -> Settings:
    """Parse words that are flags of `kind` and `--config YAML`."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, formatter_class=_HelpFormatter)
    parser.add_argument("--config", action="config", help="YAML file, or the name of a preset")
    parser.add_class_arguments(kind)
    try:
        parsed: Namespace = parser.parse_args(words)
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise UserError(f"{_parse_error(one_line(error), types, origins)}; see --help") from error
    parsed.pop("config", None)
    made = parser.instantiate(parsed)
    settings: Settings = _plain_numbers(kind(**{name: made[name] for name in types if "." not in name}))
    return settings


class _HelpFormatter(DefaultHelpFormatter):  # type: ignore[misc]  # jsonargparse is untyped here
    """Help that describes types in words."""

    def _get_type_str(self, action: argparse.Action) -> str | None:
        hint = getattr(action, "_typehint", None)
        return describe_type(hint) if hint is not None else super()._get_type_str(action)


VALUE_PATTERNS = (
    r"(?:Got|Given) value: (.*)$",
    r"(\S+) does not conform to restriction",
    r"could not convert string to float: '(.*)'",
    r"invalid literal for int\(\) with base 10: '(.*)'",
    r"(\S+) not an? (?:integer|number)",
)
"""What jsonargparse says of a value that does not fit its type, or not its range."""


def _parse_error(said: str, types: Mapping[str, Any], origins: _Origins) -> str:
    """Return what is wrong with a setting in our words, or what jsonargparse says where it is not about one."""
    group = re.search(r"Group '([\w.]+)' does not accept option '(\w+)'", said)
    if group is not None:
        return unknown_setting(f"{group[1]}.{group[2]}", list(types))
    keys = re.findall(r'Parser key "([\w.]+)":', said)
    name = next((key for key in reversed(keys) if key in types), None)
    if name is None:
        return said
    hint = types[name]
    setting = name
    # Of a list, such as that of sources.
    entry = next((kind for kind in get_args(hint) if is_dataclass(kind)), None)
    if entry is not None and (wrong := _entry_error(said, list(setting_types(cast("type", entry))))) is not None:
        return f"{origins.prefix(name, None)}{name}: {wrong}"
    if keys[-1] != name:
        if entry is None or keys[-1] not in setting_types(cast("type", entry)):
            return said
        name, hint = f"{name}: {keys[-1]}", setting_types(cast("type", entry))[keys[-1]]
    value = next((found[1] for pattern in VALUE_PATTERNS if (found := re.search(pattern, said))), None)
    return f"{origins.prefix(setting, value)}{name}{'' if value is None else f' {value}'}: give {describe_type(hint)}"


def _entry_error(said: str, known: list[str]) -> str | None:
    """Return what is wrong with the names in an entry of a list, in our words; None: they are right."""
    unknown = re.search(r"Option '(\w+)' is not accepted", said)
    if unknown is not None:
        return f"unknown '{unknown[1]}' in an entry{nearest_name_hint(unknown[1], known)} Known: {', '.join(known)}"
    missing = re.search(r"the following arguments are required: ([\w, ]+)", said)
    return None if missing is None else f"an entry lacks {missing[1].strip()}; give it"


def load_config(
    name_or_path: str | Path | None = None, overrides: Mapping[str, Any] | None = None, /, **settings: Any
) -> RunSettings:
    """Return the settings of a pre-training run: those of a YAML file or preset, with `overrides` over them.

    A group is a mapping, or dotted names: `load_config("demo", train={"max_steps": 50})`, `load_config("demo",
    {"train.max_steps": 50})` and `load_config("demo", train__max_steps=50)` are the same.

    Args:
        name_or_path: a YAML file, or the name of a preset such as `demo`; None: all settings have their defaults.
        overrides: settings by name; groups are nested mappings or settings dataclasses.
        settings: more of them, with `__` for a dot.

    Raises:
        UserError: there is no such file or preset, a setting is unknown, or a value is not allowed.
    """
    return load_settings(RunSettings, name_or_path, {**(overrides or {}), **settings})


def load_finetune_config(
    name_or_path: str | Path | None = None, overrides: Mapping[str, Any] | None = None, /, **settings: Any
) -> FinetuneSettings:
    """Return the settings of a fine-tuning run; arguments and errors are those of `load_config`."""
    return load_settings(FinetuneSettings, name_or_path, {**(overrides or {}), **settings})


def load_settings(kind: type[Settings], name_or_path: str | Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings `kind` of a YAML file or preset, with `overrides` over them; see `load_config`."""
    types = setting_types(kind)
    words: list[str] = []
    origins = _Origins()
    if name_or_path is not None:
        file = config_path(str(name_or_path))
        origins.files = places_in_yaml(read_yaml_text(file), str(file), list(types))
        words = ["--config", str(file)]
    nested: dict[str, Any] = {}
    for name, value in _flat(overrides, types):
        if name not in types:
            raise UserError(unknown_setting(name, list(types)))
        origins.overridden.add(name)
        *groups, leaf = name.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[leaf] = value
    if nested:
        try:
            words += ["--config", as_yaml(nested)]
        except yaml.representer.RepresenterError as error:
            raise UserError(f"{one_line(error)}; give plain numbers, texts, lists and mappings") from error
    return _parsed(kind, words, types, origins, "malmoi.load_config", "")


def _flat(overrides: Mapping[str, Any], types: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting by its dotted name, and its value as YAML holds it."""
    for key, value in overrides.items():
        name = f"{prefix}{key.replace('__', '.')}"
        plain = as_plain(value)
        if isinstance(plain, dict) and any(each.startswith(f"{name}.") for each in types):
            yield from _flat(plain, types, f"{name}.")
        else:
            yield name, plain


def without_switch(argv: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Return whether `argv` has `--name`, and `argv` without it: an option of a command that is no setting of a run.

    Raises:
        UserError: it is given a value other than true or false.
    """
    is_on, rest, words = False, [], list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag != f"--{name}":
            rest.append(word)
            continue
        if not equals:
            value = words.pop(0) if words and words[0].lower() in ("true", "false") else "true"
        if value.lower() not in ("true", "false"):
            raise UserError(f"--{name} {value}: is on or off; write --{name} alone, or true or false after it")
        is_on = value.lower() == "true"
    return is_on, rest


def _expanded(argv: Sequence[str], types: Mapping[str, Any], lists: Sequence[str]) -> tuple[list[str], _Origins]:
    """Return `argv` with presets as paths, several values as a list, bare switches as true, and every flag known."""
    known = list(types)
    out: list[str] = []
    origins = _Origins()
    mappings = {each: dict[str, Any]() for each in known if get_origin(types[each]) is dict}
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        mapping = next((each for each in mappings if f"{name}.".startswith(f"{each}.")), None)
        origins.overridden.add(mapping or name)
        if not flag.startswith("--"):
            out.append(word)
            continue
        if name == "config":
            if not equals:
                if not words:
                    raise UserError("--config needs a file or the name of a preset")
                value = words.pop(0)
            path = config_path(value)
            text = read_yaml_text(path)
            origins.files |= places_in_yaml(text, str(path), known)
            for each, entries in mappings.items():
                entries |= _mapping_in(yaml.safe_load(text), each)
            out += ["--config", str(path)]
        elif mapping is not None:
            if not equals:
                if not words:
                    raise UserError(f"{flag} needs a value")
                value = words.pop(0)
            chosen = yaml.safe_load(value)
            if name != mapping:
                chosen = _with_entry(mappings[mapping], name.removeprefix(f"{mapping}.").split("."), chosen)
            mappings[mapping] = chosen if isinstance(chosen, dict) else {}
            out += [f"--{mapping}", json.dumps(chosen, ensure_ascii=False)]
        elif name in lists:
            values = [value] if equals else []
            while words and not words[0].startswith("--"):
                values.append(words.pop(0))
            out += [
                flag,
                yaml.safe_dump(values, default_flow_style=True, allow_unicode=True, width=sys.maxsize).strip(),
            ]
        elif types.get(name) is bool and not equals and (not words or words[0].startswith("-")):
            out += [flag, "true"]
        elif name in known or name in ("help", "print_config"):
            out.append(word)
        else:
            raise UserError(unknown_setting(name, ["config", *known], flag="--"))
    return out, origins


def _mapping_in(settings: Any, name: str) -> dict[str, Any]:
    """Return the mapping that the settings of a YAML file give `name`; an empty one where they give none."""
    for key in name.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return dict(settings) if isinstance(settings, dict) else {}


def _with_entry(mapping: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return `mapping` with `value` in its place, such as `wandb`, `entity` of `--log.tracker_args.wandb.entity`."""
    entries = dict(mapping) if isinstance(mapping, dict) else {}
    first, *rest = keys
    return {**entries, first: _with_entry(entries.get(first), rest, value) if rest else value}


def _plain_numbers(value: Any) -> Any:
    """Return settings with plain numbers for those of `malmoi.configs.ranges`, which are types of their own."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{entry.name: _plain_numbers(getattr(value, entry.name)) for entry in fields(value)})
    if isinstance(value, tuple):
        return tuple(map(_plain_numbers, value))
    if isinstance(value, (int, float)) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, int) else float(value)
    return value
