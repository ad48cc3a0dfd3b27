"""From a command line and YAML to frozen settings; anything unknown is named with its nearest neighbour."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from configs.errors import BadInput, nearest_name_hint, one_line

PRESETS = Path(__file__).parent
Settings = TypeVar("Settings")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def preset_names() -> list[str]:
    """Names that `--config` takes besides a path."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def config_path(name: str) -> Path:
    """The YAML file at the path `name`, or the preset of that name; `configs/NAME.yaml` names a preset anywhere.

    Raises:
        BadInput: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    preset = name.removeprefix("configs/").removesuffix(".yaml")
    if preset in preset_names():
        return PRESETS / f"{preset}.yaml"
    hint = nearest_name_hint(preset, preset_names())
    raise BadInput(f"{name}: no such file, and no preset of that name{hint} Presets: {', '.join(preset_names())}")


def setting_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """The type of each setting of a dataclass by its dotted name, groups included."""
    types: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for entry in fields(kind):
        hint = types[prefix + entry.name] = hints[entry.name]
        if isinstance(hint, type) and is_dataclass(hint):
            types |= setting_types(hint, f"{prefix}{entry.name}.")
    return types


def setting_names(kind: type) -> list[str]:
    """Dotted names of all settings of a dataclass, groups included."""
    return list(setting_types(kind))


def _checked_yaml(file: Path, known: Sequence[str]) -> None:
    """Name the first key of `file` that is no setting, with its line."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{file}:{line}: no valid YAML ({error.problem}); mend the line") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: no valid YAML in UTF-8 ({error})".replace("\n", " ")) from error
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise BadInput(f"{file}:1: no settings: write `name: value` lines")
    _check_keys(file, root, known, "")


def _check_keys(file: Path, mapping: yaml.MappingNode, known: Sequence[str], prefix: str) -> None:
    for key, value in mapping.value:
        name = f"{prefix}{key.value}"
        if name not in known:
            hint = nearest_name_hint(name, known)
            raise BadInput(f"{file}:{key.start_mark.line + 1}: unknown setting '{name}'{hint}")
        if isinstance(value, yaml.MappingNode):
            _check_keys(file, value, known, f"{name}.")


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
        BadInput: a setting is unknown, or a value is not of its type.
    """
    types = setting_types(kind)
    known = list(types)
    switches = [name for name, hint in types.items() if hint is bool]
    if positional is not None and argv and not argv[0].startswith("-"):
        argv = [f"--{positional}", *argv]
    argv = _expanded(argv, known, lists, switches)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file, or the name of a preset")
    parser.add_class_arguments(kind)
    try:
        parsed: Namespace = parser.parse_args(argv)
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise BadInput(f"{_type_error(one_line(error), types)}; see --help") from error
    parsed.pop("config", None)
    made = parser.instantiate(parsed)
    return kind(**{name: made[name] for name in known if "." not in name})


def _type_error(said: str, types: Mapping[str, Any]) -> str:
    """What jsonargparse says of a value, in the words of settings; anything else as it is."""
    found = re.search(r'Parser key "([\w.]+)":.*(?:Got|Given) value: (.*)', said)
    if found is None or found[1] not in types:
        return said
    return f"{found[1]} {found[2]}: give {_in_words(types[found[1]])}"


def _in_words(hint: Any) -> str:
    """A setting's type, for who gives it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_in_words, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list, as [a, b]"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}.get(
        hint, f"a {getattr(hint, '__name__', hint)}"
    )


def without_switch(argv: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Whether `--name` stands in `argv`, and `argv` without it: an option of a command that is no setting of a run.

    Raises:
        BadInput: it is given a value other than true or false.
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
            raise BadInput(f"--{name} {value}: is on or off; write --{name} alone, or true or false after it")
        is_on = value.lower() == "true"
    return is_on, rest


def _expanded(argv: Sequence[str], known: Sequence[str], lists: Sequence[str], switches: Sequence[str]) -> list[str]:
    """`argv` with presets as paths, several values as a list, bare switches as true, and every flag known."""
    out: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--"):
            out.append(word)
            continue
        if name == "config":
            if not equals:
                if not words:
                    raise BadInput("--config needs a file or the name of a preset")
                value = words.pop(0)
            path = config_path(value)
            _checked_yaml(path, known)
            out += ["--config", str(path)]
        elif name in lists:
            values = [value] if equals else []
            while words and not words[0].startswith("--"):
                values.append(words.pop(0))
            out += [
                flag,
                yaml.safe_dump(values, default_flow_style=True, allow_unicode=True, width=sys.maxsize).strip(),
            ]
        elif name in switches and not equals and (not words or words[0].lower() not in ("true", "false")):
            out += [flag, "true"]
        elif name in known or name in ("help", "print_config"):
            out.append(word)
        else:
            raise BadInput(f"unknown setting '{flag}'{nearest_name_hint(flag, [f'--{n}' for n in ('config', *known)])}")
    return out


def settings_as_yaml(settings: Any) -> str:
    """Settings as the YAML that `--config` reads."""
    plain: dict[str, Any] = asdict(settings)
    return yaml.safe_dump(_listed(plain), sort_keys=False, allow_unicode=True)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
