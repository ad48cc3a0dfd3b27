"""A step takes the memory that the step before freed. In processes of their own, since the setting cannot be undone."""

import subprocess
import sys
from pathlib import Path

import pytest

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from tests.launching import ROOT, environment
from tests.time_limits import seconds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
FAULTS = """
import resource
import torch

weight = torch.ones(2**21, requires_grad=True)
for step in range(30):
    vectors = weight
    for _ in range(16):
        vectors = (vectors * 1.01).sin()
    vectors.sum().backward()
    del vectors
    weight.grad = None
    if step == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Steps as of training, and the pages that the kernel fills in the later ones."""


def faults_of_later_steps(before: str) -> int:
    """Return the page faults of the later steps, after the program `before`."""
    done = subprocess.run(
        [sys.executable, "-c", before + FAULTS],
        cwd=ROOT,
        env={**environment(), "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=seconds(200),
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without_setting() -> int:
    """The page faults of the allocator as it is by default."""
    return faults_of_later_steps("")


def test_freed_tensors_are_not_requested_from_the_kernel_again(without_setting: int) -> None:
    keeps = "from malmoi.train.distributed.malloc import keep_freed_memory\nassert keep_freed_memory()\n"
    assert faults_of_later_steps(keeps) < without_setting / 5


def test_training_on_a_cpu_keeps_what_it_frees(
    tiny_settings: RunSettings, tmp_path: Path, without_setting: int
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    words = ["train", "--config", str(file), "--run", str(tmp_path / "run"), "--train.max_steps", "2"]
    trains = f"from malmoi.launch.cli import main\nassert main({words!r}) == 0\n"
    assert faults_of_later_steps(trains) < without_setting / 5
