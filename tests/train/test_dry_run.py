"""`malmoi train --dry_run` says what a run would take and leaves nothing of training behind."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from malmoi.configs.model import ModelSettings
from malmoi.configs.parser import settings_as_yaml, without_switch
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.errors import UserError
from malmoi.train.backends import BACKENDS
from malmoi.train.dry_run import time_line
from malmoi.train.models import MODELS
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.step_time import PassTimes, step_seconds, timed_settings
from tests.launching import as_flags, environment, run_malmoi, with_settings
from tests.time_limits import seconds

GPT2 = MODELS["gpt2"]


def test_it_shows_memory_steps_tokens_disk_and_time_and_leaves_what_preparing_leaves(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    settings = with_settings(tiny_settings, train__max_steps=1000)
    config.write_text(settings_as_yaml(settings), encoding="utf-8")
    done = run_malmoi("train", *as_flags(config, run=run), "--dry_run")
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "parameters    " in shown
    assert "1,000 of 8 x 32 tokens (4 samples x 1 rank x 2 accumulated)" in shown
    assert re.search(r"tokens        256,000, \d+\.\d a parameter, \d+\.\d\d epochs of", shown)
    for backend in BACKENDS:
        assert backend in shown
    assert "for 3 checkpoints of" in shown
    assert len(re.search(r"\(measured: (.*) s\)", shown)[1].split(", ")) == 3
    assert {file.name for file in run.iterdir()} == {"config.yaml", "environment.json"}
    assert "dry_run" not in (run / "config.yaml").read_text(encoding="utf-8")


def test_it_leaves_a_run_that_was_stopped_as_it_was(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    names = ("config.yaml", "metrics.jsonl", "checkpoints", "model", "result.json", "tensorboard")
    before = {name: (finished_run / name).stat().st_mtime_ns for name in names}
    assert run_malmoi("train", *as_flags(config, train__max_steps=30, optim__lr=0.5), "--dry_run").returncode == 0
    assert before == {name: (finished_run / name).stat().st_mtime_ns for name in names}


def test_it_refuses_what_the_run_would_refuse(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    for change, message in (
        ({"train__max_steps": 12}, "is beyond the 12 steps that the settings give"),
        (
            {"optim__betas": "[0.5, 0.95]"},
            "steps are done, so this would train nothing: optim.betas was [0.9, 0.95] and is now [0.5, 0.95]",
        ),
    ):
        refused = run_malmoi("train", *as_flags(config, **change), "--dry_run")
        assert refused.returncode == 2
        assert message in refused.stderr


def test_the_time_is_that_of_the_steps_after_the_first() -> None:
    assert "about 0:16:48 of steps" in time_line([10.0, 0.5, 1.5], 999)
    assert "(measured: 10.00, 0.50, 1.50 s)" in time_line([10.0, 0.5, 1.5], 999)


def test_the_switch_is_taken_off_the_command_line_and_only_it() -> None:
    assert without_switch(["--run", "x", "--dry_run"], "dry_run") == (True, ["--run", "x"])
    assert without_switch(["--dry_run", "--run", "x"], "dry_run") == (True, ["--run", "x"])
    assert without_switch(["--dry_run", "false", "--run", "x"], "dry_run") == (False, ["--run", "x"])
    assert without_switch(["--dry_run=true"], "dry_run") == (True, [])
    assert without_switch(["--run", "dry_run"], "dry_run") == (False, ["--run", "dry_run"])
    with pytest.raises(UserError, match="--dry_run maybe: is on or off"):
        without_switch(["--dry_run=maybe"], "dry_run")


def test_a_terminal_shows_which_step_is_running(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes stderr for a terminal then
    shown = run_malmoi("train", *as_flags(config, run=tmp_path / "run"), "--dry_run").stderr
    assert re.search(r"step 3 of 3, of 8 samples; the one before took \d+ s", shown)


def test_a_process_lives_on_after_it(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> None:
    """What ends a run that hangs waits no longer, as in a notebook."""
    config = tmp_path / "tiny.yaml"
    config.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    patience = round(seconds(1))
    words = ["train", *as_flags(config, run=tmp_path / "run", parallel__watchdog_timeout=patience), "--dry_run"]
    program = (
        f"import time; from malmoi.launch.cli import main; assert main({words!r}) == 0; time.sleep({patience + 1}); "
        "print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(120) + patience,
        check=False,
    )
    assert done.stdout.endswith("alive\n"), done.stderr


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # what builds 51 GB of weights ends here, not the machine
from malmoi.launch.cli import main
status = main(sys.argv[1:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak)
sys.exit(status)
"""


def test_the_largest_preset_is_estimated_without_its_weights(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """13 billion parameters are 51 GB, of which a dry run may hold nothing."""
    words = [
        *("train", "--config", "gpt3-13b", "--corpus.input", f"[{tiny_settings.corpus.input[0]}]", "--dry_run"),
        *("--tokenizer.path", str(tiny_settings.tokenizer.path), "--run", str(tmp_path / "run")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(240),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "143,051 of 1024 x 2048 tokens (1 samples x 1 rank x 1024 accumulated)" in done.stdout
    assert re.search(r"parameters    12,\d{3},\d{3},\d{3}\n", done.stdout)
    [time_shown] = re.findall(r"time .*", done.stdout)
    assert "computed, by floating-point operations, from 2 of 40 layers" in time_shown
    assert re.search(r"measured: \d+\.\d\d s a pass, \d+\.\d\d s an optimizer step", time_shown)
    assert "memory seen" not in done.stdout, "it would be the smaller model's"
    assert int(done.stdout.rsplit("peak ", 1)[1]) < 5 * 2**20
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"config.yaml", "environment.json", "shards"}
    assert "n_layer: 40" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


def test_what_takes_seconds_is_timed_as_it_is(tiny_settings: RunSettings) -> None:
    assert timed_settings(tiny_settings, GPT2, 2000) is tiny_settings


def test_a_large_model_is_timed_by_fewer_layers_a_shorter_block_and_less_width_in_that_order() -> None:
    large = RunSettings(model=ModelSettings(n_layer=40, n_head=40, n_embd=5120, block_size=2048))
    timed = timed_settings(large, GPT2, 50257)
    assert timed.model.n_layer == 2 and timed.train.micro_batch_size == 1
    assert timed.model.n_embd // timed.model.n_head == 128, "heads keep their size"
    assert timed.model.block_size == 256 or timed.model.n_embd == 5120
    assert timed.train.global_batch_size == large.train.global_batch_size
    assert (timed.optim, timed.data, timed.train.precision) == (large.optim, large.data, large.train.precision)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_time_of_a_step_grows_with_operations_and_parameters(optimizer: str) -> None:
    small = RunSettings(train=TrainSettings(global_batch_size=8, micro_batch_size=2))
    large = replace(small, model=replace(small.model, n_layer=2 * small.model.n_layer))
    times, spec = PassTimes(micro_batch=3.0, optimizer=0.5), OPTIMIZERS[optimizer]
    assert step_seconds(times, small, small, GPT2, spec, 2000, 1) == pytest.approx(4 * 3.0 + 0.5)
    assert step_seconds(times, small, small, GPT2, spec, 2000, 2) == pytest.approx(2 * 3.0 + 0.5)
    flops = GPT2.flops_per_token(large.model, 2000) / GPT2.flops_per_token(small.model, 2000)
    parameters = GPT2.num_params(large.model, 2000) / GPT2.num_params(small.model, 2000)
    assert step_seconds(times, large, small, GPT2, spec, 2000, 1) == pytest.approx(12.0 * flops + 0.5 * parameters)
    wide = replace(small, model=replace(small.model, n_embd=2 * small.model.n_embd))
    flops = GPT2.flops_per_token(wide.model, 2000) / GPT2.flops_per_token(small.model, 2000)
    parameters = GPT2.num_params(wide.model, 2000) / GPT2.num_params(small.model, 2000)
    matrices = 2.0 if optimizer == "muon" else 1.0
    expected = 12.0 * flops + 0.5 * parameters * matrices
    assert step_seconds(times, wide, small, GPT2, spec, 2000, 1) == pytest.approx(expected)
