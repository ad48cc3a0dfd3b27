"""Run folders: which settings are recorded when, and which of them may change."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.parser import setting_names, settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.train.dry_run import dry_run
from malmoi.train.pretrain import pretrain
from malmoi.train.run_dir import FIXED, HYPERPARAMETERS, prepare_run, record_settings
from tests.launching import metrics, with_settings
from tests.time_limits import seconds


def test_settings_are_replaced_atomically(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> None:
    """Another rank that has the old file open still reads all of it."""
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"))
    prepare_run(settings)
    with (tmp_path / "run" / "config.yaml").open(encoding="utf-8") as old:
        changed = with_settings(settings, log__every=7)
        record_settings(tmp_path / "run", changed)
        assert old.read() == settings_as_yaml(settings)
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == settings_as_yaml(changed)


@pytest.mark.parametrize("place", [None, "memory://{}/checkpoints"])
def test_a_setting_that_was_refused_may_be_corrected_until_a_checkpoint_holds_it(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, place: str | None
) -> None:
    wanted = with_settings(
        tiny_settings,
        run=str(tmp_path / "run"),
        train__max_steps=2,
        checkpoint__every=1,
        checkpoint__dir=place and place.format(tmp_path.name),
        eval__every=0,
    )
    with pytest.raises(UserError, match=r"model.n_head 3 does not divide"):
        pretrain(with_settings(wanted, model__n_head=3))
    # Lines of a start that ended before its first checkpoint.
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 1, "tokens_seen": 1, "event": "resume", "text": ""}\n', encoding="utf-8"
    )
    assert pretrain(wanted) == 0
    assert [line["step"] for line in metrics(tmp_path / "run") if "train/loss" in line] == [1, 2]
    assert not [line for line in metrics(tmp_path / "run") if "event" in line]
    with pytest.raises(UserError, match=r"holds another run: model.n_layer was"):
        pretrain(with_settings(wanted, model__n_layer=wanted.model.n_layer + 1))


def test_only_settings_that_train_are_recorded(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A start that is refused and a dry run leave those of the run that is there."""
    config = tmp_path / "run" / "config.yaml"
    trained = with_settings(tiny_settings, run=str(tmp_path / "run"), train__max_steps=2)
    assert pretrain(trained) == 0
    assert config.read_text(encoding="utf-8") == settings_as_yaml(trained)
    other = with_settings(trained, train__max_steps=4, optim__lr=5e-3)
    with FileLock(tmp_path / "run" / ".training.lock"), pytest.raises(UserError, match="another process trains here"):
        pretrain(other)
    with pytest.raises(UserError, match="no multiple of"):
        pretrain(with_settings(other, train__global_batch_size=6))
    with pytest.raises(UserError, match="is beyond the 1 steps"):
        pretrain(with_settings(other, train__max_steps=1))
    assert dry_run(other) == 0
    assert config.read_text(encoding="utf-8") == settings_as_yaml(trained)
    assert pretrain(other) == 0
    assert config.read_text(encoding="utf-8") == settings_as_yaml(other)
    event = next(line["text"] for line in metrics(tmp_path / "run") if "event" in line)
    assert event.endswith("; train.max_steps was 2 and is now 4; optim.lr was 0.01 and is now 0.005")


def test_hyperparameters_and_fixed_settings_are_settings() -> None:
    names = {*setting_names(RunSettings), *setting_names(FinetuneSettings)}
    assert names >= HYPERPARAMETERS
    assert all(any(name.startswith(beginning) for name in names) for beginning in FIXED)


def test_a_finished_run_refuses_a_changed_hyperparameter(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    done = with_settings(tiny_settings, run=str(tmp_path / "run"), train__max_steps=2)
    assert pretrain(done) == 0
    with pytest.raises(UserError, match=r"all 2 steps are done, so this would train nothing: optim\.betas was \[0.9"):
        pretrain(with_settings(done, optim__betas=(0.8, 0.95)))
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == settings_as_yaml(done)
    asked = with_settings(done, generate__prompt="세종은")
    assert pretrain(asked) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["prompt"] == "세종은"


def test_a_run_whose_shards_are_built_loads_nothing_to_encode_with(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    """What it would load takes longer than all else before the first step but the imports."""
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"))
    prepare_run(settings)
    (tmp_path / "settings.yaml").write_text(settings_as_yaml(settings), encoding="utf-8")
    program = (
        "import sys; from malmoi.configs.parser import parse_settings; from malmoi.configs.run import RunSettings\n"
        "from malmoi.train.run_dir import prepare_run\n"
        f"prepare_run(parse_settings(RunSettings, ['--config', {str(tmp_path / 'settings.yaml')!r}], 'test', ''))\n"
        "print({'numba', 'torch', 'transformers'} & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds(120), check=False
    )
    assert (ended.stdout, ended.stderr) == ("set()\n", "")
