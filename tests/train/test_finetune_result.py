"""`finetune.json` is complete or absent."""

from pathlib import Path

import pytest

from malmoi.console import table_console
from malmoi.evaluation.calibration import Calibration, CalibrationBin
from malmoi.train.finetune_result import (
    FINETUNE_FILE,
    BaselineRecord,
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
        baselines=(BaselineRecord("words", (ScoreRecord("accuracy", 0.625, 0.4, 0.8),), "learned from 3 of 9 rows"),),
        calibration=Calibration(
            0.125, (CalibrationBin(0.0, 0.5, 0, 0.0, 0.0), CalibrationBin(0.5, 1.0, 24, 0.9, 0.75))
        ),
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


def test_the_table_has_a_row_a_score_beside_those_of_the_baselines() -> None:
    console = table_console()
    with console.capture() as shown:
        console.print(scores_table(RESULT))
    rows = [line.split() for line in shown.get().splitlines() if "0." in line]
    assert rows == [
        ["test", "accuracy", "0.7500", "0.5000", "to", "0.9000", "0.5000", "0.6250", "24"],
        ["matthews", "0.4000", "-", "-", "-"],
        ["calibration", "error", "0.1250", "-", "-", "-"],
    ]
