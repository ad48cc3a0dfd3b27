"""Settings as YAML: where a file gives each, and settings written so that they are read back equal."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from malmoi.configs.renamed import unknown_setting
from malmoi.errors import UserError, one_line


@dataclass(frozen=True)
class SettingPlace:
    """Where a file gives a setting."""

    line: str
    """`FILE:LINE`."""
    value: str | None
    """The value as it is written; None: a list or a mapping."""


def places_in_yaml(text: str, source: str, known: Sequence[str]) -> dict[str, SettingPlace]:
    """Return where each setting of a YAML text is written.

    Raises:
        UserError: it is no YAML, or names the first key that is no setting.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{source}:{line}: no valid YAML ({error.problem}); fix the line") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: no valid YAML ({one_line(error)}); fix the file") from error
    places: dict[str, SettingPlace] = {}
    if isinstance(root, yaml.MappingNode):
        _check_keys(root, source, known, "", places)
    else:
        raise UserError(f"{source}:1: no settings; write `name: value` lines")
    return places


def _check_keys(
    mapping: yaml.MappingNode, source: str, known: Sequence[str], prefix: str, places: dict[str, SettingPlace]
) -> None:
    for key, value in mapping.value:
        name, line = f"{prefix}{key.value}", f"{source}:{key.start_mark.line + 1}"
        if name not in known:
            raise UserError(f"{line}: {unknown_setting(name, known)}")
        places[name] = SettingPlace(line, value.value if isinstance(value, yaml.ScalarNode) else None)
        is_group = any(each.startswith(f"{name}.") for each in known)
        if is_group and not isinstance(value, yaml.MappingNode):
            raise UserError(
                f"{line}: {name} is a group of settings; write each on a line of its own below it, indented"
            )
        if is_group:
            _check_keys(value, source, known, f"{name}.", places)


def read_yaml_text(file: Path) -> str:
    """Return the text of a YAML file.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def settings_as_yaml(settings: Any) -> str:
    """Return settings as the YAML that `--config` reads."""
    return as_yaml(as_plain(settings))


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.2, as `--config` is, takes for a number, such as 1e3."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, '"' if text[:1] in "+-.0123456789" else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def as_yaml(plain: Any) -> str:
    """Return a value that `as_plain` returned as YAML, with keys in their order."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


def as_plain(value: Any) -> Any:
    """Return a value as YAML holds it: mappings for dataclasses, lists for tuples, texts for paths."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: as_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
