"""Look up an entry of a registry by the name that a setting gives it."""

from collections.abc import Mapping
from typing import TypeVar

from malmoi.errors import UserError, nearest_name_hint

Entry = TypeVar("Entry")


def registry_entry(registry: Mapping[str, Entry], setting: str, name: str) -> Entry:
    """Return `registry[name]`.

    Args:
        setting: the setting that names the entry, for the error.

    Raises:
        UserError: there is no such entry; names the known ones.
    """
    if name in registry:
        return registry[name]
    known = ", ".join(registry)
    raise UserError(
        f"{setting} {name}: no entry of that name{nearest_name_hint(name, registry)} Known: {known}; a plugin named in "
        "`plugins` can register others"
    )
