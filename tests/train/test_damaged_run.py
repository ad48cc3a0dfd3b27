"""Small files of a run that are damaged: the run ends in the same weights and says so, or is refused in one line."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.train.pretrain import pretrain
from tests.launching import metrics, step_losses, with_settings

WEIGHTS = "model/model.safetensors"


@pytest.fixture
def run(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> RunSettings:
    """Settings of a copy of the finished run, stopped after step 10."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder, ignore=shutil.ignore_patterns("model", "result.json", "step-000020"))
    return with_settings(tiny_settings, run=str(folder))


def change(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = (run / name).read_bytes()
        assert old in content
        (run / name).write_bytes(content.replace(old, new, 1))

    return damage


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).write_bytes(content)

    return damage


DAMAGES = {
    "a torn line": (change("metrics.jsonl", b'"train/lr"', b'"train\n'), "metrics.jsonl: 2 damaged lines dropped"),
    "a binary line": (change("metrics.jsonl", b"{", b"\x00\xff\xfe\n{"), "metrics.jsonl: 1 damaged line dropped"),
    "a foreign line": (change("metrics.jsonl", b"{", b"[3]\n{"), "metrics.jsonl: 1 damaged line dropped"),
    "another number": (
        change("metrics.jsonl", b'"tokens_seen": 2', b'"tokens_seen": 3'),
        "metrics.jsonl: changed since",
    ),
    "an empty log": (write("metrics.jsonl", b""), "metrics.jsonl: changed since"),
    "another sample": (change("samples.jsonl", b'"text": "', b'"text": "x'), "samples.jsonl: changed since"),
    "empty settings": (write("config.yaml", b""), "config.yaml: damaged (it holds no settings)"),
    "an open quote": (write("config.yaml", b'run: "runs\n'), "config.yaml: damaged (while scanning"),
    "settings of no text": (write("config.yaml", b"\xff\xfe\x80"), "config.yaml: damaged ("),
    "no environment": (write("environment.json", b"{"), ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_small_file_is_said_and_the_weights_are_the_same(
    damage: str,
    run: RunSettings,
    finished_run: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil, said = DAMAGES[damage]
    folder = Path(run.run)
    spoil(folder)
    with caplog.at_level(logging.WARNING):
        assert pretrain(run) == 0
    assert said in capfd.readouterr().err + caplog.text
    assert (folder / WEIGHTS).read_bytes() == (finished_run / WEIGHTS).read_bytes()
    assert step_losses(folder)[10:] == step_losses(finished_run)[10:] or len(step_losses(folder)) < 20
    assert [line["step"] for line in metrics(folder) if "val/loss" in line][-1] == 20


@pytest.mark.parametrize("content", [b"", b'{"settings": {', b"\xff", b"[]", b'{"samples": []}'])
def test_a_damaged_result_is_made_anew(
    content: bytes,
    tiny_settings: RunSettings,
    finished_run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "result.json").write_bytes(content)
    settings = with_settings(tiny_settings, run=str(folder))
    assert pretrain(settings) == 0
    assert f"{folder}/result.json: damaged (" in capfd.readouterr().err
    assert (folder / WEIGHTS).read_bytes() == (finished_run / WEIGHTS).read_bytes()
    assert pretrain(settings) == 0
    assert "is finished already" in capfd.readouterr().err


@pytest.mark.parametrize("change", [{"n_embd": 64}, {"n_layer": 3}], ids=["wider", "deeper"])
def test_a_checkpoint_of_another_shape_is_one_line(
    change: dict[str, int], tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    """As where two runs are given one `checkpoint.dir`."""
    settings = with_settings(
        tiny_settings, run=str(tmp_path / "run"), checkpoint__dir=str(finished_run / "checkpoints")
    )
    other = replace(settings, model=replace(settings.model, **change), train=replace(settings.train, max_steps=40))
    with pytest.raises(UserError, match=r"in this run, and the checkpoint (holds it with|lacks it).*another --run$"):
        pretrain(other)
