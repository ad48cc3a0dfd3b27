"""Entries that a setting names: models, optimizers, readers, ..."""

from collections.abc import Mapping
from typing import TypeVar

from malmoi.errors import UserError, nearest_name_hint

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """Entries by name. A name is given once, so that a plugin cannot change what a run of another means by it."""

    def __setitem__(self, name: str, entry: Entry) -> None:
        if name in self:
            raise ValueError(f"'{name}' is registered already; choose another name, or delete that entry first")
        super().__setitem__(name, entry)


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
