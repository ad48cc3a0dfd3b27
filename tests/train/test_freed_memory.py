"""A step takes the memory that the step before it freed. In processes of their own, which the setting outlives."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.command_line import settings_as_yaml
from configs.schema import RunSettings
from tests.launching import ROOT, environment

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
"""Steps of a kind, and the pages that the kernel fills in the later ones."""


def faults_of_later_steps(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", before + FAULTS],
        cwd=ROOT,
        env={**environment(), "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def as_it_comes() -> int:
    return faults_of_later_steps("")


def test_freed_tensors_are_not_asked_of_the_kernel_again(as_it_comes: int) -> None:
    keeps = "from train.freed_memory import keep_freed_memory\nassert keep_freed_memory()\n"
    assert faults_of_later_steps(keeps) < as_it_comes / 5


def test_training_on_a_processor_keeps_what_it_frees(
    tiny_settings: RunSettings, tmp_path: Path, as_it_comes: int
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(settings_as_yaml(tiny_settings))
    words = ["train", "--config", str(file), "--run", str(tmp_path / "run"), "--train.steps", "2"]
    trains = f"from launch.cli import main\nassert main({words!r}) == 0\n"
    assert faults_of_later_steps(trains) < as_it_comes / 5
