"""Answers in SQLite: none lost, none overwritten, whoever writes at the same time."""

import signal
import sqlite3
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from malmoi.errors import UserError
from malmoi.evaluation.human_eval.items import JudgeTest, read_test, write_test
from malmoi.evaluation.human_eval.ratings import RATINGS_FILE, Rating, Ratings, items_in_order
from tests.evaluation.human_eval.judging import small_test
from tests.launching import ROOT, environment
from tests.time_limits import seconds

WRITER = """
import sys
from pathlib import Path
from malmoi.evaluation.human_eval.items import read_test
from malmoi.evaluation.human_eval.ratings import Rating, Ratings
folder = Path(sys.argv[1])
test = read_test(folder)
ratings = Ratings(folder, test)
for _ in range(int(sys.argv[2])):
    rater = ratings.new_rater()
    for item in test.items:
        assert ratings.write(Rating(rater, item.id, 4))
        print(rater, item.id, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the small test."""
    write_test(tmp_path, small_test())
    return tmp_path


def writer(folder: Path, raters: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(raters)],
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
        text=True,
    )


def stored(folder: Path, test: JudgeTest) -> set[tuple[str, str]]:
    return {(rating.rater, rating.item) for rating in Ratings(folder, test).all()}


def test_an_answer_that_was_accepted_outlives_a_kill(folder: Path) -> None:
    process = writer(folder, 1000)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait(seconds(10))
    written = {tuple(line.split()) for line in lines if line.endswith("\n")}
    assert len(written) >= 25
    assert written <= stored(folder, small_test())


def test_raters_who_write_at_the_same_time_do_not_collide(folder: Path) -> None:
    processes = [writer(folder, 8) for _ in range(3)]
    outputs = [process.communicate(timeout=seconds(60))[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    written = {tuple(line.split()) for lines in outputs for line in lines}
    assert len(written) == 3 * 8 * 10
    assert stored(folder, small_test()) == written


def open_at_once(barrier: Barrier, folders: list[Path]) -> None:
    for each in folders:
        barrier.wait(seconds(60))
        Ratings(each, small_test()).new_rater()


def test_processes_that_make_the_file_at_the_same_time_do_not_collide(tmp_path: Path) -> None:
    """Sixty files, each made by four processes at once: without the lock one in four failed for somebody."""
    folders = [tmp_path / str(number) for number in range(60)]
    for each in folders:
        each.mkdir()
    forked = get_context("fork")
    barrier = forked.Barrier(4)
    processes = [forked.Process(target=open_at_once, args=(barrier, folders)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0] * 4


def test_the_first_answer_to_a_text_counts(folder: Path) -> None:
    ratings = Ratings(folder, small_test())
    rater = ratings.new_rater()
    item = small_test().items[0].id
    assert ratings.write(Rating(rater, item, 1)) is True
    assert ratings.write(Rating(rater, item, 5)) is False
    assert ratings.all() == (Rating(rater, item, 1),)


def test_each_rater_has_an_order_of_their_own_that_needs_no_server(folder: Path) -> None:
    test = small_test()
    ratings = Ratings(folder, test)
    first, second = ratings.new_rater(), ratings.new_rater()
    orders = [[item.id for item in items_in_order(test, rater)] for rater in (first, second)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == sorted(item.id for item in test.items)
    for number, item in enumerate(orders[0], 1):
        now = Ratings(folder, test).next_item(first)
        assert now.item is not None
        assert (now.item.id, now.number, now.items) == (item, number, 10)
        ratings.write(Rating(first, item, 3))
    done = ratings.next_item(first)
    assert (done.item, done.number) == (None, 10)
    untouched = ratings.next_item(second).item
    assert untouched is not None and untouched.id == orders[1][0]


@pytest.mark.parametrize("bad", ["rater", "item", "answer"])
def test_what_no_page_of_ours_sends_is_refused(folder: Path, bad: str) -> None:
    ratings = Ratings(folder, small_test())
    rater = ratings.new_rater()
    item = small_test().items[0].id
    rating = {
        "rater": Rating("0" * 32, item, 1),
        "item": Rating(rater, "0" * 16, 1),
        "answer": Rating(rater, item, 6),
    }[bad]
    with pytest.raises(ValueError, match=r"no such rater or answer|no item"):
        ratings.write(rating)
    assert ratings.all() == ()


def test_answers_to_another_test_and_broken_files_are_refused(folder: Path) -> None:
    test = small_test()
    Ratings(folder, test)
    with pytest.raises(UserError, match="holds answers to another test"):
        Ratings(folder, JudgeTest("other", test.models, test.items))
    with sqlite3.connect(folder / RATINGS_FILE) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    (folder / RATINGS_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        Ratings(folder, test)


def test_a_test_comes_back_from_disk_and_a_broken_one_is_named(folder: Path, tmp_path: Path) -> None:
    assert read_test(folder) == small_test()
    for content in ("", "[]", '{"version": 2}', '{"version": 1, "id": "x", "models": [], "items": []}'):
        (folder / "items.json").write_text(content)
        with pytest.raises(UserError, match=r"items\.json: not a valid blind test"):
            read_test(folder)
    with pytest.raises(UserError, match="make one with"):
        read_test(tmp_path / "nowhere")
