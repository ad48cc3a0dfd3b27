"""Checkpoints on disk: complete or absent, checked before they are used, the newest and the best kept."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from malmoi.checked_json import checked_json, parse_checked_json
from malmoi.train.backends.loss_scale import LossScaleState
from malmoi.train.checkpoint.format import (
    FORMAT_VERSION,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    CheckpointNotSavedError,
    CheckpointTensors,
    best_valid_checkpoint,
    checkpoint_errors,
    delete_older,
    newest_valid_checkpoint,
    save_checkpoint,
)
from malmoi.train.checkpoint.storage import LocalStorage
from malmoi.train.checkpoint.train_state import LossSpikeState, TrainState
from tests.launching import environment
from tests.time_limits import seconds

TENSORS = {"model.weight": torch.arange(1000, dtype=torch.float32), "exp_avg.weight": torch.ones(1000)}


def state_at(step: int, val_loss: float | None = None) -> TrainState:
    spikes = LossSpikeState(1, (3.5, 3.25))
    return TrainState(step, step * 8, 1, 0, "f" * 32, LossScaleState(1024.0, 5), val_loss, spikes)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_checkpoint_gives_back_what_it_was_given(storage: LocalStorage) -> None:
    save_checkpoint(storage, state_at(7), {**TENSORS, "step.weight": torch.tensor(7.0)})
    found, errors = newest_valid_checkpoint(storage)
    assert found is not None
    assert found.folder == storage.root / "step-000007"
    assert found.state == state_at(7)
    assert not errors
    tensors = CheckpointTensors(found)
    assert torch.equal(tensors["model.weight"], TENSORS["model.weight"])
    assert torch.equal(tensors["exp_avg.weight"], TENSORS["exp_avg.weight"])
    assert tensors["step.weight"] == 7.0
    assert sorted(tensors) == ["exp_avg.weight", "model.weight", "step.weight"]
    assert tensors.get("momentum_buffer.weight") is None


@pytest.mark.parametrize("file", [MODEL_FILE, OPTIMIZER_FILE])
def test_one_flipped_bit_is_named_and_the_older_checkpoint_taken(storage: LocalStorage, file: str) -> None:
    save_checkpoint(storage, state_at(1), TENSORS)
    save_checkpoint(storage, state_at(2), TENSORS)
    newest = storage.root / "step-000002"
    damaged = bytearray((newest / file).read_bytes())
    damaged[-5] ^= 1
    (newest / file).write_bytes(damaged)
    found, errors = newest_valid_checkpoint(storage)
    assert found is not None
    assert found.state.step == 1
    assert len(errors) == 1
    assert errors[0].startswith(f"{newest / file}: its content changed since it was written")


def test_no_bit_of_the_state_can_change_unnoticed(storage: LocalStorage) -> None:
    """All of them, one after another; each is named, and the older checkpoint is what remains."""
    for step in (1, 2):
        save_checkpoint(storage, state_at(step, 3.25), TENSORS)
    file = storage.root / "step-000002" / STATE_FILE
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        errors = checkpoint_errors(file.parent)
        assert len(errors) == 1 and errors[0].startswith(f"{file}: missing or damaged ("), bit
    for select in (newest_valid_checkpoint, best_valid_checkpoint):
        found, _ = select(storage)
        assert found is not None and found.state == state_at(1, 3.25)


def test_a_state_of_the_version_before_is_read(storage: LocalStorage) -> None:
    save_checkpoint(storage, state_at(1), TENSORS)
    file = storage.root / "step-000001" / STATE_FILE
    record = parse_checked_json(file.read_bytes())
    del record["state"]["logs"]
    file.write_text(json.dumps({**record, "format_version": 3}), encoding="utf-8")
    found, errors = newest_valid_checkpoint(storage)
    assert not errors and found is not None and found.state == state_at(1)


def test_a_truncated_a_missing_and_a_stateless_one_are_skipped(storage: LocalStorage) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(storage, state_at(step), TENSORS)
    (storage.root / "step-000004" / STATE_FILE).unlink()
    (storage.root / "step-000003" / MODEL_FILE).unlink()
    os.truncate(storage.root / "step-000002" / MODEL_FILE, 100)
    found, errors = newest_valid_checkpoint(storage)
    assert found is not None
    assert found.state.step == 1
    assert [error.split(": ", 1)[1][:7].rstrip(";") for error in errors] == ["missing", "missing", "100 byt"]


def test_older_ones_go_and_steps_sort_as_numbers(storage: LocalStorage) -> None:
    for step in (999_999, 1_000_000, 5):
        save_checkpoint(storage, state_at(step), TENSORS)
    delete_older(storage, keep_last=2, keep_best=0)
    assert names_in(storage.root) == ["step-1000000", "step-999999"]


def test_a_full_disk_leaves_the_last_good_checkpoint_untouched(storage: LocalStorage) -> None:
    save_checkpoint(storage, state_at(1), TENSORS)
    script = (
        "import resource, sys, torch; from malmoi.train.checkpoint.format import *\n"
        "from malmoi.train.checkpoint.storage import LocalStorage\n"
        "from malmoi.train.checkpoint.train_state import TrainState\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "tensors = {'model.weight': torch.zeros(100000)}\n"
        "state = TrainState(2, 16, 0, 0, '', None, None)\n"
        "try:\n    save_checkpoint(LocalStorage(sys.argv[1]), state, tensors)\n"
        "except CheckpointNotSavedError as error:\n    print('not saved')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(storage.root)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )
    assert done.stdout.strip() == "not saved", done.stderr
    found, errors = newest_valid_checkpoint(storage)
    assert found is not None
    assert found.state.step == 1
    assert not errors
    assert names_in(storage.root) == ["step-000001"]
    assert checkpoint_errors(found.folder) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_the_best_stay_besides_the_newest(storage: LocalStorage) -> None:
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, None), (5, 6.0), (6, None)):
        save_checkpoint(storage, state_at(step, loss), TENSORS)
    delete_older(storage, keep_last=1, keep_best=2)
    assert names_in(storage.root) == ["step-000002", "step-000003", "step-000006"]


def test_a_loss_that_is_not_finite_is_never_the_best(storage: LocalStorage) -> None:
    for step, loss in ((1, 1.0), (2, math.nan), (3, math.inf), (4, None)):
        save_checkpoint(storage, state_at(step, loss), TENSORS)
    best, _ = best_valid_checkpoint(storage)
    assert best is not None and best.state.step == 1
    delete_older(storage, keep_last=1, keep_best=1)
    assert names_in(storage.root) == ["step-000001", "step-000004"]


def test_a_copy_under_another_name_is_no_checkpoint_and_stays(storage: LocalStorage) -> None:
    copies = ["step-000001.bak", "step-old", "step-"]
    for copy in copies:
        (storage.root / copy).mkdir()
    for step in (1, 2):
        save_checkpoint(storage, state_at(step), TENSORS)
    delete_older(storage, keep_last=1, keep_best=0)
    assert names_in(storage.root) == sorted(["step-000002", *copies])


def test_too_little_space_is_reported_before_anything_is_written(storage: LocalStorage) -> None:
    """The kernel gives a sparse tensor of more bytes than the disk has; none of them is ever touched."""
    free = os.statvfs(storage.root).f_bavail * os.statvfs(storage.root).f_frsize
    sparse = torch.empty(1, dtype=torch.uint8).expand(2 * free)
    with pytest.raises(CheckpointNotSavedError, match=r"step-000002: not saved \(it needs .* are free\)"):
        save_checkpoint(storage, state_at(2), {"model.weight": sparse})
    assert not list(storage.root.iterdir())


def test_what_a_killed_process_left_is_cleaned_up(storage: LocalStorage) -> None:
    root = storage.root
    save_checkpoint(storage, state_at(1), TENSORS)
    (root / "step-000001").rename(root / ".step-000001.replaced")
    save_checkpoint(storage, state_at(2), TENSORS)
    for step, leftover in ((3, ".step-000002.replaced"), (4, ".step-000004.writing"), (5, ".step-000005.deleted")):
        save_checkpoint(storage, state_at(step), TENSORS)
        (root / f"step-{step:06d}").rename(root / leftover)
    storage.clean_up()
    assert names_in(root) == ["step-000001", "step-000002"]
    assert not checkpoint_errors(root / "step-000001")
    assert json.loads((root / "step-000002" / STATE_FILE).read_text(encoding="utf-8"))["state"]["step"] == 2


def test_a_checkpoint_of_another_format_is_named(storage: LocalStorage) -> None:
    save_checkpoint(storage, state_at(1), TENSORS)
    file = storage.root / "step-000001" / STATE_FILE
    state = parse_checked_json(file.read_bytes())
    file.write_bytes(checked_json({**state, "format_version": 1}))
    [error] = checkpoint_errors(file.parent)
    assert f"format 1, this Malmoi reads {FORMAT_VERSION}" in error
