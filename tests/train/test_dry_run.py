"""`malmoi train --dry_run` says what a run would take and leaves nothing of training behind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from malmoi.configs.parser import settings_as_yaml, without_switch
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.train.backends import BACKENDS
from malmoi.train.dry_run import time_line
from tests.launching import as_flags, environment, run_malmoi, with_settings
from tests.time_limits import seconds


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
