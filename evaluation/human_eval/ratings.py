"""The answers of a blind test's raters, in SQLite: each is on disk before the next text is shown."""

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from malmoi.errors import UserError
from malmoi.evaluation.human_eval.items import Item, JudgeTest

RATINGS_FILE = "ratings.sqlite"
SCALE = (1, 2, 3, 4, 5)
"""1: surely a person, 2: rather a person, 3: I cannot tell, 4: rather a machine, 5: surely a machine."""
CANNOT_TELL = 3
WAIT_SECONDS = 30.0
"""Timeout of a writer that waits for another one's transaction."""

_TABLES = """
CREATE TABLE IF NOT EXISTS test (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS rater (id TEXT PRIMARY KEY, began REAL NOT NULL);
CREATE TABLE IF NOT EXISTS rating (
    rater TEXT NOT NULL REFERENCES rater (id),
    item TEXT NOT NULL,
    answer INTEGER NOT NULL CHECK (answer BETWEEN 1 AND 5),
    written REAL NOT NULL,
    PRIMARY KEY (rater, item)
);
"""


@dataclass(frozen=True)
class Rating:
    """One answer."""

    rater: str
    item: str
    answer: int
    """One of `SCALE`."""


@dataclass(frozen=True)
class NextItem:
    """What a rater is shown next."""

    item: Item | None
    """None when all are answered."""
    number: int
    """Number of the item in the rater's order, from 1."""
    items: int
    """Items in all."""


class Ratings:
    """The answers to one test. Each call is a transaction of its own, so threads and processes may share the file."""

    def __init__(self, folder: Path, test: JudgeTest) -> None:
        """Open the database in `folder`, or create it.

        Raises:
            UserError: it cannot be written, is not a database, or holds answers to another test.
        """
        self._file = folder / RATINGS_FILE
        self._test = test
        try:
            # Two that switch to WAL at once do not wait for each other, whatever the timeout.
            with FileLock(folder / f".{RATINGS_FILE}.lock", fallback_to_soft=False), self._connected() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_TABLES)
                connection.execute("INSERT INTO test SELECT ? WHERE NOT EXISTS (SELECT 1 FROM test)", (test.id,))
                [(stored,)] = connection.execute("SELECT id FROM test").fetchall()
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{self._file}: cannot be used ({error}); move it away, or fix its permissions") from error
        if stored != test.id:
            raise UserError(f"{self._file}: holds answers to another test; move it away")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file, timeout=WAIT_SECONDS)) as connection:
            # WAL alone may lose the last transactions when the machine, not only the process, goes down.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            with connection:
                yield connection

    def new_rater(self) -> str:
        """Add a rater, and return the id that only their browser knows."""
        rater = uuid4().hex
        with self._connected() as connection:
            connection.execute("INSERT INTO rater VALUES (?, ?)", (rater, time.time()))
        return rater

    def knows(self, rater: str) -> bool:
        """Return whether `new_rater` gave that id."""
        with self._connected() as connection:
            return bool(connection.execute("SELECT 1 FROM rater WHERE id = ?", (rater,)).fetchone())

    def next_item(self, rater: str) -> NextItem:
        """Return the first item, in the rater's own order, that they have not answered."""
        with self._connected() as connection:
            answered = {item for (item,) in connection.execute("SELECT item FROM rating WHERE rater = ?", (rater,))}
        left = [item for item in items_in_order(self._test, rater) if item.id not in answered]
        count = len(self._test.items)
        return NextItem(left[0] if left else None, count - len(left) + bool(left), count)

    def write(self, rating: Rating) -> bool:
        """Write an answer to disk, and return false if this rater answered this item before: the first answer counts.

        Raises:
            ValueError: no such rater, item or answer.
        """
        if self._test.item(rating.item) is None:
            raise ValueError(f"no item {rating.item!r} in this test")
        try:
            with self._connected() as connection:
                done = connection.execute(
                    "INSERT INTO rating VALUES (?, ?, ?, ?) ON CONFLICT (rater, item) DO NOTHING",
                    (rating.rater, rating.item, rating.answer, time.time()),
                )
                return done.rowcount == 1
        except sqlite3.IntegrityError as error:
            raise ValueError(f"no such rater or answer: {rating} ({error})") from error

    def all(self) -> tuple[Rating, ...]:
        """Return every answer, in the order in which they were given."""
        with self._connected() as connection:
            rows = connection.execute("SELECT rater, item, answer FROM rating ORDER BY rowid").fetchall()
        return tuple(Rating(*row) for row in rows)


def items_in_order(test: JudgeTest, rater: str) -> list[Item]:
    """Return all items in an order that depends on test and rater alone, so that a server keeps no state."""
    items = list(test.items)
    random.Random(f"{test.id} {rater}").shuffle(items)
    return items
