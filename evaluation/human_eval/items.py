"""The texts of a blind test and their authors, on disk. Needs no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from malmoi.atomic_io import write_atomic
from malmoi.errors import UserError

ITEMS_FILE = "items.json"
ITEMS_VERSION = 1

Author = Literal["human", "model", "control"]


@dataclass(frozen=True)
class Item:
    """A text that raters are shown: an opening by a person and its continuation."""

    id: str
    """Random, since browsers see it and it must not reveal the author."""
    author: Author
    """Who wrote the continuation."""
    model: str
    """Folder of the model that wrote the continuation; empty for people."""
    opening: str
    continuation: str
    place: str
    """Source of the document, as `file:line`."""
    human_characters: int
    """Characters of the person's continuation, which this one is as long as."""
    seed: int
    """Seed that the continuation was sampled with."""


@dataclass(frozen=True)
class JudgeTest:
    """A blind test."""

    id: str
    models: tuple[str, ...]
    """The models that are tested, in order."""
    items: tuple[Item, ...]

    def items_by(self, author: Author, model: str | None = None) -> tuple[Item, ...]:
        """Return the items of a kind of author, or of one model."""
        return tuple(item for item in self.items if item.author == author and model in (None, item.model))

    def item(self, name: str) -> Item | None:
        """Return the item of that id, or none."""
        return next((item for item in self.items if item.id == name), None)


def write_test(folder: Path, test: JudgeTest) -> Path:
    """Write a test into `folder` atomically, and return the file's path.

    Raises:
        UserError: the folder cannot be written to.
    """
    file = folder / ITEMS_FILE
    content = {"version": ITEMS_VERSION, **asdict(test)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another --out") from error
    return file


def check_no_test(folder: Path) -> None:
    """Check that no test would be overwritten, since its ratings would then be of other texts.

    Raises:
        UserError: `folder` holds a test.
    """
    if (folder / ITEMS_FILE).exists():
        raise UserError(f"{folder}: holds a test already; choose another --out, or delete it with its ratings")


def read_test(folder: Path) -> JudgeTest:
    """Return the test in `folder`.

    Raises:
        UserError: there is none, or its file is not valid.
    """
    file = folder / ITEMS_FILE
    if not file.is_file():
        raise UserError(f"{folder}: no blind test ({ITEMS_FILE}); make one with `malmoi judge make --out {folder}`")
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        if read["version"] != ITEMS_VERSION:
            raise ValueError(f"version {read['version']}, not {ITEMS_VERSION}")
        items = tuple(Item(**item) for item in read["items"])
        test = JudgeTest(str(read["id"]), tuple(map(str, read["models"])), items)
        _check(test)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a valid blind test ({error!r}); make another with `malmoi judge make`") from error
    return test


def _check(test: JudgeTest) -> None:
    unknown = {item.author for item in test.items} - set(get_args(Author))
    if unknown:
        raise ValueError(f"author {min(unknown)!r}")
    if not all(isinstance(each, str) for item in test.items for each in (item.id, item.opening, item.continuation)):
        raise TypeError("a text that is not a string")
    if len({item.id for item in test.items}) != len(test.items) or not test.items:
        raise ValueError("no items, or two of one id")


def count_authors(items: Sequence[Item]) -> str:
    """Return counts in words: `25 by people, 50 by models, 10 deliberately bad`."""
    counts = {author: sum(item.author == author for item in items) for author in get_args(Author)}
    return f"{counts['human']} by people, {counts['model']} by models, {counts['control']} deliberately bad"
