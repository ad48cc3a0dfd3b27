"""What settings are called on the command line of a command that takes them without their group."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from configs.errors import BadInput
from configs.schema import CorpusSettings, DataSettings, TokenizerSettings

GROUPS = {"corpus": CorpusSettings, "data": DataSettings, "tokenizer": TokenizerSettings}
OTHERWISE = {"data.cache": "out", "tokenizer.path": "tokenizer"}
"""Settings whose option has a name of its own."""


def options_of(kind: type) -> dict[str, str]:
    """Dotted setting of a run -> option of the command whose options are the dataclass `kind`, where it has one."""
    names = {f"{group}.{each.name}": each.name for group, settings in GROUPS.items() for each in fields(settings)}
    own = {each.name for each in fields(kind)}
    return {dotted: f"--{name}" for dotted, name in (names | OTHERWISE).items() if name in own}


@contextmanager
def bare_names(kind: type) -> Iterator[None]:
    """Around work of a command whose options are `kind`: errors name settings as that command does.

    A setting that the command lacks keeps its dotted name, of a run's settings.
    """
    options = options_of(kind)
    dotted = "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
    try:
        yield
    except BadInput as error:
        raise BadInput(re.sub(rf"\b({dotted})\b", lambda found: options[found[1]], str(error))) from error
