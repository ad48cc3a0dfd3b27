"""Checkpoints that are written while training continues."""

import threading
from pathlib import Path

import pytest
import torch

import malmoi.train.checkpoint.async_writer
from malmoi.configs.outputs import CheckpointSettings
from malmoi.train.checkpoint.async_writer import CheckpointWriter
from malmoi.train.checkpoint.format import CheckpointTensors, newest_valid_checkpoint, save_checkpoint
from malmoi.train.checkpoint.storage import LocalStorage
from malmoi.train.checkpoint.train_state import TrainState
from tests.time_limits import seconds


def state_at(step: int) -> TrainState:
    return TrainState(step, step * 8, 0, 0, "f" * 32, None, None)


def test_the_state_at_the_time_of_the_call_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights change while the writer is held up, as they do while training continues."""
    may_write = threading.Event()

    def late(*args: object) -> None:
        assert may_write.wait(seconds(30))
        save_checkpoint(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(malmoi.train.checkpoint.async_writer, "save_checkpoint", late)
    storage = LocalStorage(str(tmp_path))
    writer = CheckpointWriter(storage, CheckpointSettings())
    weight = torch.ones(3)
    writer.save(state_at(1), [("model.weight", weight)])
    weight.fill_(7.0)
    assert writer.saved_step is None
    may_write.set()
    writer.wait()
    assert writer.saved_step == 1
    found, _ = newest_valid_checkpoint(storage)
    assert found is not None
    assert CheckpointTensors(found)["model.weight"].tolist() == [1.0, 1.0, 1.0]


def test_a_second_save_waits_for_the_first_and_reuses_its_memory(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    writer = CheckpointWriter(storage, CheckpointSettings(keep_last=1))
    for step in (1, 2, 3):
        writer.save(state_at(step), [("model.weight", torch.full((1000,), float(step)))])
    writer.wait()
    (folder,) = tmp_path.glob("step-*")
    assert folder.name == "step-000003"
    found, _ = newest_valid_checkpoint(storage)
    assert found is not None
    assert CheckpointTensors(found)["model.weight"][0] == 3.0


def test_a_save_that_fails_is_reported_and_the_next_one_succeeds(tmp_path: Path) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be", encoding="utf-8")
    writer = CheckpointWriter(LocalStorage(str(blocked)), CheckpointSettings(keep_last=1))
    writer.save(state_at(1), [("model.weight", torch.ones(2))])
    writer.wait()
    assert writer.saved_step is None
    assert len(writer.problems) == 1
    assert "step-000001: not saved" in writer.problems[0]
    blocked.unlink()
    writer.save(state_at(2), [("model.weight", torch.ones(2))])
    writer.wait()
    assert writer.saved_step == 2


def test_an_older_checkpoint_that_cannot_be_deleted_is_reported_and_the_new_one_counts(tmp_path: Path) -> None:
    writer = CheckpointWriter(LocalStorage(str(tmp_path)), CheckpointSettings(keep_last=1, async_save=False))
    writer.save(state_at(1), [("model.weight", torch.ones(3))])
    (tmp_path / ".step-000001.deleted" / "left").mkdir(parents=True)
    writer.save(state_at(2), [("model.weight", torch.ones(3))])
    assert writer.saved_step == 2
    (problem,) = writer.problems
    assert (
        problem == f"{tmp_path / 'step-000001'}: an older checkpoint cannot be deleted (Directory not empty); delete it"
    )
