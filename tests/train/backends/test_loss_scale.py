"""fp16's loss scale, of every backend: torch's GradScaler, kept in the checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import malmoi.train.backends.loss_scale
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.train.backends.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, MINIMUM_SCALE, LossScaleState
from tests.launching import ROOT, as_flags, environment, metrics, with_settings
from tests.time_limits import seconds


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_the_scale_moves_as_torchs_grad_scaler(overflows: list[bool], interval: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=INITIAL_SCALE, growth_interval=interval)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    state = LossScaleState()
    before = malmoi.train.backends.loss_scale.GROWTH_INTERVAL
    malmoi.train.backends.loss_scale.GROWTH_INTERVAL = interval
    try:
        for overflow in overflows:
            weight.grad = torch.tensor([float("inf") if overflow else 1.0])
            scaler.scale(torch.ones(1))
            scaler.step(optimizer)
            scaler.update()
            state = state.after(overflow)
            assert state.scale == max(MINIMUM_SCALE, scaler.get_scale())
            if scaler.get_scale() < MINIMUM_SCALE:
                return
    finally:
        malmoi.train.backends.loss_scale.GROWTH_INTERVAL = before
    assert GROWTH_INTERVAL == 2000


def faulty(fault: str, steps: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "train" / "faulty.py"), fault, "0", steps, *words],
        env={**environment(), "LIFT_DEEPSPEED_DEVICE_CHECK": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )


def state_at(run: Path, step: int) -> dict[str, Any]:
    """The run's state in the checkpoint of a step."""
    file = run / "checkpoints" / f"step-{step:06d}" / "state.json"
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["state"]
    return state


SOAK = pytest.mark.soak
EVERY_BACKEND = ["single", "fsdp2", "zero2", *(pytest.param(name, marks=SOAK) for name in ("zero1", "zero3"))]


@pytest.fixture
def config(tiny_settings: RunSettings, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    settings = with_settings(tiny_settings, train__precision="fp16", train__micro_batch_size=8, eval__every=0)
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    return file


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_an_overflow_skips_one_step_halves_the_scale_and_keeps_the_learning_rate(
    config: Path, tmp_path: Path, backend: str
) -> None:
    flags = as_flags(config, run=tmp_path / "run", train__max_steps=8, parallel__backend=backend)
    done = faulty("nan", "4", *flags)
    assert done.returncode == 0, done.stderr
    lines = [line for line in metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["train/skipped_steps"] for line in lines] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert lines[4]["train/lr"] == lines[3]["train/lr"]
    assert state_at(tmp_path / "run", 8)["loss_scale"] == {"scale": INITIAL_SCALE / 2, "good_steps": 4}


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_the_scale_grows_after_as_many_good_steps_on_every_backend_and_counts_from_there(
    config: Path, tmp_path: Path, backend: str
) -> None:
    flags = as_flags(config, run=tmp_path / "run", train__max_steps=8, checkpoint__every=6, parallel__backend=backend)
    done = faulty("grow", "6", *flags)
    assert done.returncode == 0, done.stderr
    scales = [state_at(tmp_path / "run", step) for step in (6, 8)]
    assert [state["skipped_steps"] for state in scales] == [0, 0]
    assert [state["loss_scale"] for state in scales] == [
        {"scale": INITIAL_SCALE * 2, "good_steps": 0},
        {"scale": INITIAL_SCALE * 2, "good_steps": 2},
    ]


@pytest.mark.parametrize("backend", ["single", "zero1"])
def test_after_an_overflow_at_the_minimum_the_run_stops_with_a_diagnosis(
    config: Path, tmp_path: Path, backend: str
) -> None:
    flags = as_flags(config, run=tmp_path / "run", train__max_steps=30, parallel__backend=backend)
    done = faulty("nan", "1-100", *flags)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "malmoi train: step 17: fp16's loss scale is at its minimum of 1 and the gradient is still not finite: "
        "lower optim.lr, or use bf16 or fp32"
    )


def test_the_minimum_scale_is_tried_before_the_run_fails(config: Path, tmp_path: Path) -> None:
    done = faulty("nan", "1-16", *as_flags(config, run=tmp_path / "run", train__max_steps=18))
    assert done.returncode == 0, done.stderr
    lines = [line for line in metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["train/skipped_steps"] for line in lines[14:]] == [15, 16, 16, 16]


def test_the_scale_does_not_fall_below_its_minimum() -> None:
    exhausted = LossScaleState(MINIMUM_SCALE, 7)
    assert exhausted.is_exhausted
    assert exhausted.after(skipped=True) == LossScaleState(MINIMUM_SCALE, 0)
    assert not LossScaleState(MINIMUM_SCALE * 2, 0).is_exhausted
