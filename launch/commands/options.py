"""What commands share: settings that name plugins, optional packages, and the names that errors call settings by."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TypeVar

from malmoi.configs.corpus import CorpusSettings, TokenizerSettings
from malmoi.configs.data import DataSettings
from malmoi.configs.parser import parse_settings
from malmoi.errors import UserError

Settings = TypeVar("Settings")
GROUPS = {"corpus": CorpusSettings, "data": DataSettings, "tokenizer": TokenizerSettings}
RENAMED = {"data.cache": "out", "tokenizer.path": "tokenizer"}
"""Settings whose option has a name of its own."""


def parse_with_plugins(
    kind: type[Settings],
    argv: Sequence[str],
    prog: str,
    description: str,
    lists: Sequence[str] = (),
    positional: str | None = None,
) -> Settings:
    """Parse a command line as `parse_settings` does, then import the modules that its `plugins` name, if it has any.

    Raises:
        UserError: a setting is unknown, a value is not of its type, or a plugin cannot be imported.
    """
    settings = parse_settings(kind, argv, prog, description, lists=lists, positional=positional)
    names: Sequence[str] = getattr(settings, "plugins", ())
    if names:
        from malmoi.plugins import load_plugins

        load_plugins(names)
    return settings


@contextmanager
def optional_packages(extra: str, *packages: str) -> Iterator[None]:
    """Import optional packages in the block.

    Raises:
        UserError: one of `packages` is not installed; it names the extra that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in packages:
            raise
        raise UserError(f"{error.name} is not installed; install it with `pip install 'malmoi[{extra}]'`") from error


def option_by_setting(kind: type) -> dict[str, str]:
    """Map dotted settings of a run to the options of a command, for the settings that its options (`kind`) include."""
    names = {f"{group}.{each.name}": each.name for group, settings in GROUPS.items() for each in fields(settings)}
    own = {each.name for each in fields(kind)}
    return {dotted: f"--{name}" for dotted, name in (names | RENAMED).items() if name in own}


@contextmanager
def errors_name_options(kind: type) -> Iterator[None]:
    """Have errors of the block name settings as the options of a command, which are the fields of `kind`.

    A setting that the command lacks keeps the dotted name that it has in a run's settings.
    """
    options = option_by_setting(kind)
    dotted = "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(rf"\b({dotted})\b", lambda found: options[found[1]], str(error))) from error
