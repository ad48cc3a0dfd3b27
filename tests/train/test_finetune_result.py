"""`finetune.json` is complete or absent."""

from pathlib import Path

import pytest

from malmoi.console import table_console
from malmoi.train.finetune_result import (
    FINETUNE_FILE,
    ClassRecord,
    FileScores,
    FinetuneResult,
    ScoreRecord,
    finished_finetuning,
    scores_table,
    write_finetuning,
)

SCORES = (ScoreRecord("accuracy", 0.75, 0.5, 0.9), ScoreRecord("matthews", 0.4, None, None))
CLASSES = (ClassRecord("긍정", 0.5, 0.25, 0.3, 20), ClassRecord("부정", 0.0, 0.0, 0.0, 4))
FILES = (
    FileScores(
        *("test", "시험.jsonl", 24, 0.6, SCORES, (ScoreRecord("accuracy", 0.5, None, None),), CLASSES),
        confusion=((5, 15), (4, 0)),
    ),
)
RESULT = FinetuneResult({"dropout": 0.1}, 8, 8, 64, ("긍정", "부정"), FILES)


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_finetuning(tmp_path, RESULT)
    assert finished_finetuning(tmp_path) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == [FINETUNE_FILE]


def test_a_result_that_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / FINETUNE_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        write_finetuning(tmp_path, RESULT)
    assert [file.name for file in tmp_path.iterdir()] == [FINETUNE_FILE]


def test_the_table_has_a_row_a_score_beside_that_of_the_most_frequent_answer() -> None:
    console = table_console()
    with console.capture() as shown:
        console.print(scores_table(RESULT))
    rows = [line.split() for line in shown.get().splitlines() if "0." in line]
    assert rows == [
        ["test", "accuracy", "0.7500", "0.5000", "to", "0.9000", "0.5000", "24"],
        ["matthews", "0.4000", "-", "-"],
    ]
