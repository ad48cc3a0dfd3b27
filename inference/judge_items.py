"""The texts of a blind test, and whose they are, as they lie on disk. Needs no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from configs.errors import BadInput
from data_prep.files import write_whole

ITEMS_FILE = "items.json"
ITEMS_VERSION = 1

Author = Literal["human", "model", "control"]


@dataclass(frozen=True)
class Item:
    """A text that raters are shown: an opening by a person, and what follows it."""

    id: str
    """Tells nothing of the author, since browsers see it."""
    author: Author
    """Who wrote the continuation."""
    model: str
    """Folder of the model that wrote it; empty for people."""
    opening: str
    continuation: str
    place: str
    """Where the document stands whose opening this is."""
    human_characters: int
    """Characters of the person's continuation, which this one is matched with."""
    seed: int
    """Seed that the continuation was drawn with."""


@dataclass(frozen=True)
class JudgeTest:
    """A blind test."""

    id: str
    models: tuple[str, ...]
    """The models that are tested, in order."""
    items: tuple[Item, ...]

    def of(self, author: Author, model: str | None = None) -> tuple[Item, ...]:
        """The items of an author; of one model, where it is named."""
        return tuple(item for item in self.items if item.author == author and model in (None, item.model))

    def item(self, name: str) -> Item | None:
        """The item of that id, where there is one."""
        return next((item for item in self.items if item.id == name), None)


def write_test(folder: Path, test: JudgeTest) -> Path:
    """Write a test into `folder`, whole or not at all, and return the file's path.

    Raises:
        BadInput: the folder cannot be written to.
    """
    file = folder / ITEMS_FILE
    content = {"version": ITEMS_VERSION, **asdict(test)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written to ({error.strerror}); choose another --out") from error
    return file


def check_no_test(folder: Path) -> None:
    """Refuse to overwrite a test: its ratings would be of other texts.

    Raises:
        BadInput: `folder` holds one.
    """
    if (folder / ITEMS_FILE).exists():
        raise BadInput(f"{folder}: holds a test already; choose another --out, or delete it with its ratings")


def read_test(folder: Path) -> JudgeTest:
    """The test in `folder`.

    Raises:
        BadInput: there is none, or its file is not one of ours.
    """
    file = folder / ITEMS_FILE
    if not file.is_file():
        raise BadInput(f"{folder}: no {ITEMS_FILE}, so no blind test; make one with `malmoi judge make --out {folder}`")
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        if read["version"] != ITEMS_VERSION:
            raise ValueError(f"version {read['version']}, not {ITEMS_VERSION}")
        items = tuple(Item(**item) for item in read["items"])
        test = JudgeTest(str(read["id"]), tuple(map(str, read["models"])), items)
        _check(test)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: no blind test ({error!r}); make it again with `malmoi judge make`") from error
    return test


def _check(test: JudgeTest) -> None:
    unknown = {item.author for item in test.items} - set(get_args(Author))
    if unknown:
        raise ValueError(f"author {min(unknown)!r}")
    if not all(isinstance(each, str) for item in test.items for each in (item.id, item.opening, item.continuation)):
        raise TypeError("a text that is no string")
    if len({item.id for item in test.items}) != len(test.items) or not test.items:
        raise ValueError("no items, or two of one id")


def count_authors(items: Sequence[Item]) -> str:
    """`25 by people, 50 by models, 10 bad on purpose`."""
    counts = {author: sum(item.author == author for item in items) for author in get_args(Author)}
    return f"{counts['human']} by people, {counts['model']} by models, {counts['control']} bad on purpose"
