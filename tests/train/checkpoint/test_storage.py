"""Where checkpoints are stored: the same on every storage, and on a remote one complete only with `state.json`."""

import uuid
from pathlib import Path

import fsspec
import pytest
import torch

from malmoi.errors import UserError
from malmoi.train.checkpoint import STORAGES, Storage
from malmoi.train.checkpoint.format import (
    CheckpointNotSavedError,
    CheckpointTensors,
    best_valid_checkpoint,
    checkpoint_names,
    delete_older,
    newest_valid_checkpoint,
    save_checkpoint,
)
from malmoi.train.checkpoint.storage import LAST_FILE, FsspecStorage, LocalStorage, open_storage
from malmoi.train.checkpoint.train_state import TrainState


def state_at(step: int, val_loss: float | None = None) -> TrainState:
    return TrainState(step, step * 8, 0, 0, "f" * 32, None, val_loss)


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((100,), float(step)), "exp_avg.weight": torch.ones(100)}


@pytest.fixture(params=["path", "file", "memory", "fsspec on disk"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new place of each kind; the last one is by a scheme that `STORAGES` has no entry for."""
    return {
        "path": str(tmp_path / "run"),
        "file": f"file://{tmp_path / 'run'}",
        "memory": f"memory://{uuid.uuid4().hex}/run",
        "fsspec on disk": f"local://{tmp_path / 'run'}",
    }[request.param]


@pytest.fixture
def storage(url: str) -> Storage:
    return open_storage(url)


def test_each_scheme_has_its_storage(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), LocalStorage)
    assert isinstance(open_storage("memory://here"), FsspecStorage)
    assert isinstance(open_storage(f"local://{tmp_path}"), FsspecStorage)
    assert {"file", "memory"} <= set(STORAGES)


def test_a_checkpoint_is_written_found_read_and_deleted(url: str, storage: Storage) -> None:
    assert storage.names() == []
    storage.clean_up()
    for step, loss in ((5, None), (10, 3.0), (15, None), (20, 4.0)):
        save_checkpoint(storage, state_at(step, loss), tensors_of(step))
    another = open_storage(url)
    assert checkpoint_names(another) == ["step-000020", "step-000015", "step-000010", "step-000005"]
    newest, errors = newest_valid_checkpoint(another)
    assert newest is not None and not errors
    assert newest.state == state_at(20, 4.0)
    assert torch.equal(CheckpointTensors(newest)["model.weight"], tensors_of(20)["model.weight"])
    best, _ = best_valid_checkpoint(another)
    assert best is not None and best.state.step == 10
    delete_older(storage, keep_last=2, keep_best=1)
    assert checkpoint_names(another) == ["step-000020", "step-000015", "step-000010"]


def test_a_checkpoint_of_the_same_step_replaces_the_older_one(url: str, storage: Storage) -> None:
    """Also for a process that has read the older one."""
    another = open_storage(url)
    for value in (1, 2):
        save_checkpoint(storage, state_at(5, float(value)), tensors_of(value))
        found, errors = newest_valid_checkpoint(another)
        assert found is not None and not errors
        assert found.state.val_loss == value
        assert float(CheckpointTensors(found)["model.weight"][0]) == value
    assert another.names() == ["step-000005"]


def test_a_missing_file_is_an_error_of_the_disk(storage: Storage) -> None:
    save_checkpoint(storage, state_at(5), tensors_of(5))
    assert b'"step": 5' in storage.read_file("step-000005", LAST_FILE)
    with pytest.raises(OSError):
        storage.read_file("step-000005", "other.json")
    with pytest.raises(OSError):
        storage.read_file("step-000006", LAST_FILE)


@pytest.mark.parametrize("scheme", ["memory", "local"])
def test_a_half_written_checkpoint_of_a_remote_storage_is_none_and_is_cleaned_up(scheme: str, tmp_path: Path) -> None:
    """An upload was killed before its last file, `state.json`."""
    root = f"{tmp_path}/run" if scheme == "local" else f"/{uuid.uuid4().hex}/run"
    storage = open_storage(f"{scheme}://{root}")
    for step in (5, 10):
        save_checkpoint(storage, state_at(step), tensors_of(step))
    filesystem = fsspec.filesystem(scheme)
    filesystem.rm_file(f"{root}/step-000010/{LAST_FILE}")
    filesystem.makedirs(f"{root}/corpus/step-000001")
    filesystem.pipe_file(f"{root}/corpus/text.txt", b"text")
    found, errors = newest_valid_checkpoint(storage)
    assert found is not None and found.state.step == 5 and not errors
    assert filesystem.exists(f"{root}/step-000010")
    storage.clean_up()
    assert not filesystem.exists(f"{root}/step-000010")
    assert filesystem.cat_file(f"{root}/corpus/text.txt") == b"text", "what is not ours stays"
    assert checkpoint_names(storage) == ["step-000005"]
    # And the step can be written again.
    save_checkpoint(storage, state_at(10), tensors_of(10))
    assert checkpoint_names(storage) == ["step-000010", "step-000005"]


def test_the_last_file_is_uploaded_last_and_deleted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a kill comes, what has a `state.json` is complete."""
    storage = open_storage(f"memory://{uuid.uuid4().hex}/run")
    assert isinstance(storage, FsspecStorage)
    filesystem = fsspec.filesystem("memory")
    calls: list[str] = []
    plain_put, plain_rm = type(filesystem).put_file, type(filesystem).rm_file

    def put(self: object, local: str, remote: str, **named: object) -> None:
        calls.append(f"put {remote.rsplit('/', 1)[-1]}")
        plain_put(self, local, remote, **named)

    def remove(self: object, path: str) -> None:
        calls.append(f"rm {path.rsplit('/', 1)[-1]}")
        plain_rm(self, path)

    monkeypatch.setattr(type(filesystem), "put_file", put)
    monkeypatch.setattr(type(filesystem), "rm_file", remove)
    save_checkpoint(storage, state_at(5), tensors_of(5))
    assert calls == ["put model.safetensors", "put optimizer.safetensors", f"put {LAST_FILE}"]
    storage.delete("step-000005")
    assert calls[3] == f"rm {LAST_FILE}"
    assert storage.names() == []


def test_an_upload_that_fails_is_a_checkpoint_that_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"memory://{uuid.uuid4().hex}/run")
    save_checkpoint(storage, state_at(5), tensors_of(5))

    def broken(*_: object, **__: object) -> None:
        raise OSError("the network is down")

    with monkeypatch.context() as patched:
        patched.setattr(type(fsspec.filesystem("memory")), "put_file", broken)
        with pytest.raises(CheckpointNotSavedError, match=r"step-000010: not saved \(the network is down\); make room"):
            save_checkpoint(storage, state_at(10), tensors_of(10))
    assert checkpoint_names(storage) == ["step-000005"]


@pytest.mark.parametrize("url", ["nowhere://bucket/run", "hdfs2://bucket"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(UserError, match=f"checkpoint.dir {url}: .*known schemes: {', '.join(STORAGES)}"):
        open_storage(url)
