import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    CheckpointNotSavedError,
    CheckpointTensors,
    Progress,
    best_whole_checkpoint,
    checkpoint_faults,
    delete_older,
    mend_leftovers,
    newest_whole_checkpoint,
    save_checkpoint,
)
from train.loss_scale import LossScaleState

TENSORS = {"model.weight": torch.arange(1000, dtype=torch.float32), "exp_avg.weight": torch.ones(1000)}


def progress(step: int, held_out_loss: float | None = None) -> Progress:
    return Progress(step, step * 8, 1, 0, "f" * 32, LossScaleState(1024.0, 5), held_out_loss)


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, progress(7), {**TENSORS, "step.weight": torch.tensor(7.0)})
    found, faults = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.folder == folder == tmp_path / "step-000007"
    assert found.progress == progress(7)
    assert not faults
    tensors = CheckpointTensors(found)
    assert torch.equal(tensors["model.weight"], TENSORS["model.weight"])
    assert torch.equal(tensors["exp_avg.weight"], TENSORS["exp_avg.weight"])
    assert tensors["step.weight"] == 7.0
    assert sorted(tensors) == ["exp_avg.weight", "model.weight", "step.weight"]
    assert tensors.get("momentum_buffer.weight") is None


@pytest.mark.parametrize("file", [MODEL_FILE, OPTIMIZER_FILE])
def test_one_flipped_bit_is_named_and_the_older_checkpoint_taken(tmp_path: Path, file: str) -> None:
    save_checkpoint(tmp_path, progress(1), TENSORS)
    newest = save_checkpoint(tmp_path, progress(2), TENSORS)
    damaged = bytearray((newest / file).read_bytes())
    damaged[-5] ^= 1
    (newest / file).write_bytes(damaged)
    found, faults = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.progress.step == 1
    assert len(faults) == 1
    assert faults[0].startswith(f"{newest / file}: its content changed since it was written")


def test_a_truncated_a_missing_and_a_stateless_one_are_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, progress(step), TENSORS)
    (tmp_path / "step-000004" / STATE_FILE).unlink()
    (tmp_path / "step-000003" / MODEL_FILE).unlink()
    os.truncate(tmp_path / "step-000002" / MODEL_FILE, 100)
    found, faults = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.progress.step == 1
    assert [fault.split(": ", 1)[1][:7].rstrip(";") for fault in faults] == ["missing", "missing", "100 byt"]


def test_older_ones_go_and_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 5):
        save_checkpoint(tmp_path, progress(step), TENSORS)
    delete_older(tmp_path, keep_last=2, keep_best=0)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-1000000", "step-999999"]


def test_a_full_disk_leaves_the_last_good_checkpoint_untouched(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), TENSORS)
    script = (
        "import resource, sys, torch; from pathlib import Path; from train.checkpoint import *\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "tensors = {'model.weight': torch.zeros(100000)}\n"
        "try:\n    save_checkpoint(Path(sys.argv[1]), Progress(2, 16, 0, 0, '', None, None), tensors)\n"
        "except CheckpointNotSavedError as error:\n    print('not saved')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "not saved", done.stderr
    found, faults = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.progress.step == 1
    assert not faults
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint_faults(found.folder) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_the_best_stay_besides_the_newest(tmp_path: Path) -> None:
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, None), (5, 6.0), (6, None)):
        save_checkpoint(tmp_path, progress(step, loss), TENSORS)
    delete_older(tmp_path, keep_last=1, keep_best=2)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-000002", "step-000003", "step-000006"]


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, 1.0), (2, math.nan), (3, math.inf), (4, None)):
        save_checkpoint(tmp_path, progress(step, loss), TENSORS)
    best, _ = best_whole_checkpoint(tmp_path)
    assert best is not None and best.progress.step == 1
    delete_older(tmp_path, keep_last=1, keep_best=1)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-000001", "step-000004"]


def test_a_copy_under_another_name_is_no_checkpoint_and_stays(tmp_path: Path) -> None:
    copies = [tmp_path / "step-000001.bak", tmp_path / "step-old", tmp_path / "step-"]
    for copy in copies:
        copy.mkdir()
    for step in (1, 2):
        save_checkpoint(tmp_path, progress(step), TENSORS)
    delete_older(tmp_path, keep_last=1, keep_best=0)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "step-000002", *copies])


def test_no_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """The kernel gives a sparse tensor of more bytes than the disk has; none of them is ever touched."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(CheckpointNotSavedError, match=r"step-000002: not saved \(it needs .* are free\)"):
        save_checkpoint(tmp_path, progress(2), {"model.weight": torch.empty(1, dtype=torch.uint8).expand(2 * free)})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_mended(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path, progress(1), TENSORS)
    whole.rename(tmp_path / ".step-000001.replaced")
    save_checkpoint(tmp_path, progress(2), TENSORS)
    save_checkpoint(tmp_path, progress(3), TENSORS).rename(tmp_path / ".step-000002.replaced")
    save_checkpoint(tmp_path, progress(4), TENSORS).rename(tmp_path / ".step-000004.writing")
    save_checkpoint(tmp_path, progress(5), TENSORS).rename(tmp_path / ".step-000005.deleted")
    mend_leftovers(tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    assert not checkpoint_faults(tmp_path / "step-000001")
    assert json.loads((tmp_path / "step-000002" / STATE_FILE).read_text())["progress"]["step"] == 2


def test_a_checkpoint_of_another_format_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, progress(1), TENSORS)
    state = json.loads((folder / STATE_FILE).read_text())
    (folder / STATE_FILE).write_text(json.dumps({**state, "format_version": 1}))
    assert checkpoint_faults(folder) == [f"{folder / STATE_FILE}: format 1, this Malmoi reads 2"]
