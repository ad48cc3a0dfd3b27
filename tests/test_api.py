"""What `import malmoi` gives: everything, lazily, with types."""

import dataclasses
import inspect
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import malmoi
from malmoi.api import TrainResult
from malmoi.configs.run import RunSettings
from malmoi.inference.model_folder import LoadedModel
from tests.launching import ACCELERATE, ROOT, environment

HEAVY = {"accelerate", "jsonargparse", "numpy", "torch", "transformers", "yaml"}


def loaded_after(program: str) -> set[str]:
    """Top-level modules that a fresh process has after the program."""
    program += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_import_loads_nothing_heavy() -> None:
    assert not HEAVY & loaded_after("import malmoi\nassert callable(malmoi.train)\ndir(malmoi)")


def test_settings_and_text_need_no_torch() -> None:
    program = "import malmoi\nmalmoi.load_config('demo')\nmalmoi.READERS, malmoi.prepare, malmoi.open_dataset"
    assert not {"torch", "transformers"} & loaded_after(program)


@pytest.mark.parametrize("name", malmoi.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    assert name in dir(malmoi)
    value = getattr(malmoi, name)
    if name.isupper():
        assert value
        assert all(isinstance(key, str) for key in value)
    elif name == "train":
        assert inspect.signature(value) == inspect.signature(malmoi.api.train)
    else:
        assert inspect.getdoc(value)
        assert value.__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'malmoi' has no attribute 'trian'$"):
        _ = malmoi.trian  # type: ignore[attr-defined]


def test_train_is_a_function_and_a_package() -> None:
    import malmoi.train.optim  # sets the attribute `train` of malmoi

    assert callable(malmoi.train)
    assert malmoi.train.optim.OPTIMIZERS is malmoi.OPTIMIZERS  # type: ignore[attr-defined]


def test_type_checkers_see_the_types(tmp_path: Path) -> None:
    """The names under TYPE_CHECKING are those that are imported when used."""
    program = tmp_path / "program.py"
    program.write_text(
        "import malmoi\n"
        'config: malmoi.RunSettings = malmoi.load_config("demo", run="r", train={"max_steps": 3})\n'
        "result: malmoi.TrainResult = malmoi.train(config)\n"
        "reveal_type(result.val_loss)\n"
        "malmoi.train(3)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-color-output", str(program)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if f"{program.name}:" in line]
    assert len(lines) == 2, done.stdout + done.stderr
    revealed, wrong = lines
    assert 'Revealed type is "float | None"' in revealed
    assert 'expected "RunSettings"' in wrong


def test_the_steps_of_a_run_one_by_one(tiny_settings: RunSettings, finished_run: Path) -> None:
    """On a run that is done, each step returns what is there."""
    assert malmoi.train_tokenizer(tiny_settings) == Path(str(tiny_settings.tokenizer.path))
    [folder] = malmoi.prepare(tiny_settings)
    tokens, val = malmoi.open_dataset(folder), malmoi.open_dataset(folder, split="val")
    assert len(tokens) > len(val) > 0
    first = np.empty(8, np.int64)
    tokens.read_into(0, first)
    assert first.max() < 2000
    result = malmoi.train(tiny_settings)
    assert result == TrainResult(
        run=finished_run,
        model=finished_run / "model",
        val_loss=result.val_loss,
        bits_per_byte=result.bits_per_byte,
        samples=result.samples,
    )
    assert result.val_loss is not None
    assert 0 < result.val_loss < math.log(2000) + 1
    assert len(result.samples) == tiny_settings.generate.num_return_sequences
    model = malmoi.load_model(result.model)
    assert isinstance(model, LoadedModel)
    [drawn] = malmoi.generate(model, "이순신", num_return_sequences=1, max_new_tokens=4)
    assert drawn.samples[0].startswith("이순신")
    scored = malmoi.evaluate(model, folder)
    assert scored.bits_per_byte == pytest.approx(result.bits_per_byte, rel=1e-4)


def test_under_accelerate_launch_every_rank_gets_the_result(tiny_settings: RunSettings, tmp_path: Path) -> None:
    from malmoi.configs.parser import settings_as_yaml

    config, program = tmp_path / "config.yaml", tmp_path / "program.py"
    config.write_text(settings_as_yaml(dataclasses.replace(tiny_settings, run=str(tmp_path / "run"))), encoding="utf-8")
    program.write_text(
        "import os, sys, malmoi\n"
        f"result = malmoi.train(malmoi.load_config({str(config)!r}, train={{'max_steps': 2}}))\n"
        "print(f'rank {os.environ[\"RANK\"]}: {result.val_loss} {result.samples!r}')\n",
        encoding="utf-8",
    )
    launch = [ACCELERATE, "launch", "--config_file", str(ROOT / "configs" / "accelerate" / "cpu.yaml")]
    command = [*launch, "--main_process_port", "0", str(program)]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith("rank "))
    assert set(said) == {"rank 0", "rank 1"}
    assert said["rank 0"] == said["rank 1"]


def test_settings_out_of_range_are_refused_before_anything_is_made(tmp_path: Path, tiny_settings: RunSettings) -> None:
    run = tmp_path / "run"
    bad = dataclasses.replace(tiny_settings, run=str(run), optim=dataclasses.replace(tiny_settings.optim, lr=-1.0))
    for step in (malmoi.train_tokenizer, malmoi.prepare, malmoi.train):
        with pytest.raises(malmoi.UserError, match=r"^optim\.lr -1\.0: give a finite number of 0 or more"):
            step(bad)
    with pytest.raises(malmoi.UserError, match=r"^dropout 2: give a number from 0 to below 1"):
        malmoi.finetune(malmoi.FinetuneSettings(run=str(run), dropout=2))
    assert not run.exists()
