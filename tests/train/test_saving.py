import threading
from pathlib import Path

import pytest
import torch

import train.saving
from train.checkpoint import CheckpointTensors, Progress, newest_whole_checkpoint, save_checkpoint
from train.saving import CheckpointWriter, SavePolicy


def progress(step: int) -> Progress:
    return Progress(step, step * 8, 0, 0, "f" * 32, None, None)


def test_what_is_saved_is_the_state_at_the_time_of_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights change while the writer is held up, as they do while training goes on."""
    may_write = threading.Event()

    def late(*args: object) -> Path:
        assert may_write.wait(30)
        return save_checkpoint(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(train.saving, "save_checkpoint", late)
    writer = CheckpointWriter(SavePolicy(tmp_path, 2, 0, asynchronous=True))
    weight = torch.ones(3)
    writer.save(progress(1), [("model.weight", weight)])
    weight.fill_(7.0)
    assert writer.saved_step is None
    may_write.set()
    writer.wait()
    assert writer.saved_step == 1
    found, _ = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert CheckpointTensors(found)["model.weight"].tolist() == [1.0, 1.0, 1.0]


def test_a_second_save_waits_for_the_first_and_reuses_its_memory(tmp_path: Path) -> None:
    writer = CheckpointWriter(SavePolicy(tmp_path, 1, 0, asynchronous=True))
    for step in (1, 2, 3):
        writer.save(progress(step), [("model.weight", torch.full((1000,), float(step)))])
    writer.wait()
    (folder,) = tmp_path.glob("step-*")
    assert folder.name == "step-000003"
    found, _ = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert CheckpointTensors(found)["model.weight"][0] == 3.0


def test_a_save_that_fails_is_told_and_the_next_one_succeeds(tmp_path: Path) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be")
    writer = CheckpointWriter(SavePolicy(blocked, 1, 0, asynchronous=True))
    writer.save(progress(1), [("model.weight", torch.ones(2))])
    writer.wait()
    assert writer.saved_step is None
    assert len(writer.problems) == 1
    assert "step-000001: not saved" in writer.problems[0]
    blocked.unlink()
    writer.save(progress(2), [("model.weight", torch.ones(2))])
    writer.wait()
    assert writer.saved_step == 2


def test_an_older_checkpoint_that_cannot_be_deleted_is_told_and_the_new_one_counts(tmp_path: Path) -> None:
    writer = CheckpointWriter(SavePolicy(tmp_path, 1, 0, asynchronous=False))
    writer.save(progress(1), [("model.weight", torch.ones(3))])
    (tmp_path / ".step-000001.deleted" / "left").mkdir(parents=True)
    writer.save(progress(2), [("model.weight", torch.ones(3))])
    assert writer.saved_step == 2
    (problem,) = writer.problems
    assert (
        problem == f"{tmp_path / 'step-000001'}: an older checkpoint cannot be deleted (Directory not empty); delete it"
    )
