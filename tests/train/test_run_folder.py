import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from configs.command_line import setting_names, settings_as_yaml
from configs.errors import BadInput
from configs.finetune_settings import FinetuneSettings
from configs.schema import RunSettings
from tests.launching import metrics
from train.dry_run import dry_run
from train.resuming import LEARNT_BY
from train.run import run
from train.run_folder import prepare_run, record_settings


def test_settings_are_replaced_in_one_step(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> None:
    """Whoever has the old file open, as another rank may, goes on reading all of it."""
    settings = replace(tiny_settings, run=str(tmp_path / "run"))
    prepare_run(settings)
    with (tmp_path / "run" / "config.yaml").open() as old:
        changed = replace(settings, train=replace(settings.train, log_every=7))
        record_settings(tmp_path / "run", changed)
        assert old.read() == settings_as_yaml(settings)
    assert (tmp_path / "run" / "config.yaml").read_text() == settings_as_yaml(changed)


def test_a_setting_that_was_refused_may_be_corrected_until_a_checkpoint_holds_it(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    train = replace(tiny_settings.train, steps=2, save_every=1, evaluate_every=0)
    wanted = replace(tiny_settings, run=str(tmp_path / "run"), train=train)
    uneven = replace(wanted, model=replace(wanted.model, n_head=3))
    with pytest.raises(BadInput, match=r"model.n_head 3 does not divide"):
        run(uneven)
    # Lines of a start that ended before its first checkpoint.
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "tokens": 1, "event": "restart", "text": ""}\n')
    assert run(wanted) == 0
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2]
    assert not [line for line in metrics(tmp_path / "run") if "event" in line]
    with pytest.raises(BadInput, match=r"holds another run: model.n_layer was"):
        run(replace(wanted, model=replace(wanted.model, n_layer=wanted.model.n_layer + 1)))


def test_only_settings_that_train_are_recorded(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A start that is refused and a dry run leave those of the run that is there."""
    config = tmp_path / "run" / "config.yaml"
    trained = replace(tiny_settings, run=str(tmp_path / "run"), train=replace(tiny_settings.train, steps=2))
    assert run(trained) == 0
    assert config.read_text() == settings_as_yaml(trained)
    other = replace(trained, train=replace(trained.train, steps=4, learning_rate=5e-3))
    with FileLock(tmp_path / "run" / ".training.lock"), pytest.raises(BadInput, match="another process trains here"):
        run(other)
    with pytest.raises(BadInput, match="no multiple of"):
        run(replace(other, train=replace(other.train, global_batch=6)))
    with pytest.raises(BadInput, match="is beyond the 1 steps"):
        run(replace(other, train=replace(other.train, steps=1)))
    assert dry_run(other) == 0
    assert config.read_text() == settings_as_yaml(trained)
    assert run(other) == 0
    assert config.read_text() == settings_as_yaml(other)
    event = next(line["text"] for line in metrics(tmp_path / "run") if "event" in line)
    assert event.endswith("; train.steps was 2 and is now 4; train.learning_rate was 0.01 and is now 0.005")


def test_what_weights_are_learnt_by_are_settings() -> None:
    assert {*setting_names(RunSettings), *setting_names(FinetuneSettings)} >= LEARNT_BY


def test_a_run_that_is_done_takes_no_setting_that_only_training_would_heed(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    done = replace(tiny_settings, run=str(tmp_path / "run"), train=replace(tiny_settings.train, steps=2))
    assert run(done) == 0
    with pytest.raises(BadInput, match=r"all 2 steps are done, so this would train nothing: train\.beta1 was 0.9"):
        run(replace(done, train=replace(done.train, beta1=0.8)))
    assert (tmp_path / "run" / "config.yaml").read_text() == settings_as_yaml(done)
    asked = replace(done, sampling=replace(done.sampling, prompt="세종은"))
    assert run(asked) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["prompt"] == "세종은"


def test_a_run_whose_data_is_there_sets_up_nothing_to_encode_with(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    """What it would load takes longer than all else before the first step but the imports."""
    settings = replace(tiny_settings, run=str(tmp_path / "run"))
    prepare_run(settings)
    (tmp_path / "settings.yaml").write_text(settings_as_yaml(settings))
    program = (
        "import sys; from configs.command_line import parse_settings; from configs.schema import RunSettings\n"
        "from train.run_folder import prepare_run\n"
        f"prepare_run(parse_settings(RunSettings, ['--config', {str(tmp_path / 'settings.yaml')!r}], 'test', ''))\n"
        "print({'numba', 'torch', 'transformers'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout, ended.stderr) == ("set()\n", "")
