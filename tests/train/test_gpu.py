"""One GPU: `pytest -m gpu`."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.tasks.micro_batch import largest_micro_batch
from tests.launching import as_flags, metrics, run_malmoi, step_losses, with_settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
HALF = 0.01
"""Largest difference of a loss from fp32's over 20 steps of a tiny model, of some 7 nats. On a CPU: 0.0003."""
RATE = 0.003
"""At three times this rate two runs that round differently drift apart: on a CPU by 0.08, on a GPU by 0.05."""


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 channels, which flash attention's kernels take."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = with_settings(tiny_settings, model__n_head=2, model__n_embd=64, optim__lr=RATE)
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    return file


@dataclass
class RowsTask:
    """A task whose samples are rows of ones; it notes the sizes that are tried."""

    tried: list[int] = field(default_factory=list)
    sample_tokens: int = 1024

    def num_target_tokens(self, first_sample: int, count: int) -> int:
        return count

    def read(self, first_sample: int, count: int) -> int:
        return count

    def largest(self, count: int) -> int:
        return count

    def loss_sum(self, model: torch.nn.Module, samples: int, device: torch.device) -> torch.Tensor:
        self.tried.append(samples)
        rows: torch.Tensor = model(torch.ones(samples, 1024, device=device))
        return rows.sum()

    def evaluate(self, *_: Any) -> None:
        return None


def losses(config: Path, run: Path, **settings: object) -> list[float]:
    done = run_malmoi("train", *as_flags(config, run=run, **settings), timeout=400)
    assert done.returncode == 0, done.stderr
    assert "x cuda" in done.stderr
    assert all(line["mem/peak_mib"] > 0 for line in metrics(run) if "train/loss" in line)
    return step_losses(run)


@pytest.fixture(scope="module")
def fp32(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(config, tmp_path_factory.mktemp("fp32") / "run")


@pytest.mark.parametrize("backend", ["single", "zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_fp32_on_every_backend(
    config: Path, fp32: list[float], tmp_path: Path, backend: str, precision: str
) -> None:
    half = losses(config, tmp_path / "run", parallel__backend=backend, train__precision=precision)
    assert half != fp32
    assert max(abs(one - other) for one, other in zip(half, fp32, strict=True)) < HALF
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in exported.values())


@pytest.mark.parametrize("backend", ["zero1", "zero2", "zero3", "fsdp2"])
def test_every_backend_gives_the_curve_of_a_single_process(
    config: Path, fp32: list[float], tmp_path: Path, backend: str
) -> None:
    sharded = losses(config, tmp_path / "run", parallel__backend=backend)
    assert max(abs(one - other) for one, other in zip(sharded, fp32, strict=True)) < 1e-3  # TF32


def test_state_in_host_memory_gives_the_same_curve(config: Path, fp32: list[float], tmp_path: Path) -> None:
    settings = {"parallel__backend": "fsdp2", "parallel__offload": True}
    offloaded = losses(config, tmp_path / "run", **settings)
    assert max(abs(one - other) for one, other in zip(offloaded, fp32, strict=True)) < 1e-3  # TF32


def test_what_is_compiled_gives_the_same_curve(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, which rounds to 11 bits what compiled and plain kernels hand to a product with other last bits:
    with it, they were seen 1.6e-3 apart."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    plain, compiled = (losses(config, tmp_path / str(on), train__compile=on) for on in (False, True))
    assert max(abs(one - other) for one, other in zip(compiled, plain, strict=True)) < 1e-4


def test_the_micro_batch_that_a_gpu_takes_is_found_and_gives_the_same_curve(
    config: Path, fp32: list[float], tmp_path: Path
) -> None:
    found = losses(config, tmp_path / "run", train__micro_batch_size="auto")
    assert max(abs(one - other) for one, other in zip(found, fp32, strict=True)) < 1e-3  # TF32


def test_a_micro_batch_too_large_for_a_gpu_is_refused_and_leaves_nothing_there() -> None:
    launch = read_launch_env({})
    env = DistEnv(Accelerator(), "single", "fp32", launch, launch.dims)
    model, task = torch.nn.Linear(1024, 1024, device=env.device), RowsTask()
    assert largest_micro_batch(model, task, 8, env) == 8, "its products' workspace stays"
    before = torch.cuda.memory_allocated()
    everything = torch.cuda.get_device_properties(env.device).total_memory // (4 * 1024)
    task.tried.clear()
    # A power of two, whose divisors are few: from more than there is down to what fits.
    found = largest_micro_batch(model, task, 2 ** everything.bit_length(), env)
    assert 8 < found < everything
    assert task.tried[-1] == found and task.tried == sorted(task.tried, reverse=True) and len(task.tried) > 1
    assert torch.cuda.memory_allocated() == before


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_flash_attention_gives_the_same_curve(config: Path, fp32: list[float], tmp_path: Path) -> None:
    flash = losses(config, tmp_path / "run", train__attention="flash_attention_2", train__precision="bf16")
    assert max(abs(one - other) for one, other in zip(flash, fp32, strict=True)) < HALF
