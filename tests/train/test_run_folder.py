from dataclasses import replace
from pathlib import Path

from configs.command_line import settings_as_yaml
from configs.schema import RunSettings
from train.run_folder import prepare_run


def test_settings_are_replaced_in_one_step(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> None:
    """Whoever has the old file open, as another rank may, goes on reading all of it."""
    settings = replace(tiny_settings, run=str(tmp_path / "run"))
    prepare_run(settings)
    with (tmp_path / "run" / "config.yaml").open() as old:
        changed = replace(settings, train=replace(settings.train, log_every=7))
        prepare_run(changed)
        assert old.read() == settings_as_yaml(settings)
    assert (tmp_path / "run" / "config.yaml").read_text() == settings_as_yaml(changed)
