"""`finetune.json` is there whole or not at all."""

from pathlib import Path

import pytest

from train.finetune_result import FINETUNE_FILE, FinetuneResult, finished_finetuning, write_finetuning

RESULT = FinetuneResult({"dropout": 0.1}, 8, 8, 64, ("긍정", "부정"), ())


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_finetuning(tmp_path, RESULT)
    assert finished_finetuning(tmp_path) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == [FINETUNE_FILE]


def test_a_result_that_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / FINETUNE_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        write_finetuning(tmp_path, RESULT)
    assert [file.name for file in tmp_path.iterdir()] == [FINETUNE_FILE]
