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
    Progress,
    checkpoint_faults,
    delete_older,
    load_tensors,
    newest_whole_checkpoint,
    save_checkpoint,
)

TENSORS = {"weight": torch.arange(1000, dtype=torch.float32)}


def progress(step: int) -> Progress:
    return Progress(step, step * 8, 0, "f" * 32, {})


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, progress(7), TENSORS, {"step.weight": torch.tensor(7.0)})
    found, faults = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.folder == folder == tmp_path / "step-000007"
    assert found.progress == progress(7)
    assert not faults
    assert torch.equal(load_tensors(folder / MODEL_FILE)["weight"], TENSORS["weight"])
    assert load_tensors(folder / OPTIMIZER_FILE)["step.weight"] == 7.0


@pytest.mark.parametrize("file", [MODEL_FILE, OPTIMIZER_FILE])
def test_one_flipped_bit_is_named_and_the_older_checkpoint_taken(tmp_path: Path, file: str) -> None:
    save_checkpoint(tmp_path, progress(1), TENSORS, TENSORS)
    newest = save_checkpoint(tmp_path, progress(2), TENSORS, TENSORS)
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
        save_checkpoint(tmp_path, progress(step), TENSORS, TENSORS)
    (tmp_path / "step-000004" / STATE_FILE).unlink()
    (tmp_path / "step-000003" / MODEL_FILE).unlink()
    os.truncate(tmp_path / "step-000002" / MODEL_FILE, 100)
    found, faults = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.progress.step == 1
    assert [fault.split(": ", 1)[1][:7].rstrip(";") for fault in faults] == ["missing", "missing", "100 byt"]


def test_older_ones_go_and_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 5):
        save_checkpoint(tmp_path, progress(step), TENSORS, TENSORS)
    delete_older(tmp_path, keep=2)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-1000000", "step-999999"]


def test_a_full_disk_leaves_the_last_good_checkpoint_untouched(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), TENSORS, TENSORS)
    script = (
        "import resource, sys, torch; from pathlib import Path; from train.checkpoint import *\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "tensors = {'weight': torch.zeros(100000)}\n"
        "try:\n    save_checkpoint(Path(sys.argv[1]), Progress(2, 16, 0, '', {}), tensors, tensors)\n"
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
