"""A number out of its range is refused by name before anything is trained, wherever it was given."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from malmoi.configs.corpus import CorpusSettings, SourceSettings
from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.configs.outputs import LogSettings, SamplingSettings
from malmoi.configs.parser import load_config, parse_settings, preset_names
from malmoi.configs.ranges import RANGES
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.configs.validate import check_settings, setting_types
from malmoi.errors import UserError

OUT_OF_RANGE = [
    ("schedule.decay_ratio", 1.5, "a number from 0 to 1"),
    ("schedule.min_lr_ratio", -0.1, "a number from 0 to 1"),
    ("schedule.warmup_steps", -1, "a whole number of 0 or more"),
    ("optim.lr", -1.0, "a finite number of 0 or more"),
    ("optim.lr", float("inf"), "a finite number of 0 or more"),
    ("optim.lr", float("nan"), "a finite number of 0 or more"),
    ("optim.weight_decay", -1.0, "a finite number of 0 or more"),
    ("optim.eps", -1.0, "a finite number of 0 or more"),
    ("optim.max_grad_norm", -1.0, "a number of 0 or more"),
    ("optim.max_grad_norm", float("nan"), "a number of 0 or more"),
    ("train.micro_batch_size", 0, "a whole number of 1 or more, or auto"),
    ("train.global_batch_size", 0, "a whole number of 1 or more"),
    ("train.max_steps", 0, "a whole number of 1 or more, or null"),
    ("train.epochs", 0, "a number above 0"),
    ("train.seed", -1, "a whole number of 0 or more"),
    ("log.every", 0, "a whole number of 1 or more"),
    ("checkpoint.keep_last", 0, "a whole number of 1 or more"),
    ("checkpoint.every", -1, "a whole number of 0 or more"),
    ("checkpoint.keep_best", -1, "a whole number of 0 or more"),
    ("eval.tokens", 0, "a whole number of 1 or more"),
    ("eval.every", -1, "a whole number of 0 or more"),
    ("rollback.max_nonfinite_steps", -1, "a whole number of 0 or more"),
    ("rollback.spike_zscore", -1.0, "a number of 0 or more"),
    ("rollback.spike_window", 1, "a whole number of 2 or more"),
    ("rollback.max_rollbacks", -1, "a whole number of 0 or more"),
    ("parallel.watchdog_timeout", -1, "a whole number of 0 or more"),
    ("corpus.max_document_bytes", 1023, "a whole number of 1024 or more"),
    ("corpus.cleaning.min_hangul_ratio", 1.5, "a number from 0 to 1"),
    ("data.val_fraction", 1.0, "a number from 0 to below 1"),
    ("model.dropout", 1.0, "a number from 0 to below 1"),
]


def replaced(settings: Any, name: str, value: Any) -> Any:
    """The settings with the one of the dotted name `name` replaced, as Python code may do."""
    group, dot, rest = name.partition(".")
    return dataclasses.replace(settings, **{group: replaced(getattr(settings, group), rest, value) if dot else value})


@pytest.mark.parametrize(("name", "value", "allowed"), OUT_OF_RANGE)
def test_a_number_out_of_its_range_is_named_with_what_is_allowed(name: str, value: float, allowed: str) -> None:
    for given in (
        lambda: parse_settings(RunSettings, [f"--{name}={value}"], "malmoi train", ""),
        lambda: load_config("demo", {name: value}),
        lambda: check_settings(replaced(RunSettings(), name, value)),
    ):
        with pytest.raises(UserError) as refused:
            given()
        assert str(refused.value).replace(".0:", ":") == f"{name} {value}: give {allowed}; see --help".replace(
            ".0:", ":"
        )


# Types are wrong on purpose where a line says so to mypy: code without types can do that.
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            RunSettings(optim=OptimSettings(betas=(0.9, 1.0))),
            r"optim\.betas \(0\.9, 1\.0\): give a list of 2, each",
        ),
        (RunSettings(optim=OptimSettings(betas=[0.9, 0.95])), r"optim\.betas \[.*: give a list of 2"),  # type: ignore[arg-type]  # on purpose
        (RunSettings(train=TrainSettings(seed="5")), "train.seed 5: give a whole number of 0 or more"),  # type: ignore[arg-type]  # on purpose
        (RunSettings(train=TrainSettings(compile=1)), "train.compile 1: give true or false"),  # type: ignore[arg-type]  # on purpose
        (RunSettings(train=TrainSettings(max_steps=True)), "train.max_steps True: give a whole number of 1 or more"),
        (RunSettings(train=TrainSettings(precision="int8")), "train.precision int8: give auto, fp32, bf16 or fp16"),  # type: ignore[arg-type]  # on purpose
        (RunSettings(model=ModelSettings(n_layer=1.5)), "model.n_layer 1.5: give a whole number of 1 or more"),  # type: ignore[arg-type]  # on purpose
        (RunSettings(model=None), "model None: give a group of architecture, n_layer"),  # type: ignore[arg-type]  # on purpose
        (RunSettings(log=LogSettings(profile_steps=(3, 0))), r"log\.profile_steps \(3, 0\): give a list, each a whole"),
        (RunSettings(log=LogSettings(tracker_args={"wandb": 3})), "log.tracker_args .*: give a mapping"),  # type: ignore[dict-item]
        (
            RunSettings(corpus=CorpusSettings(sources=(SourceSettings("a", ("x",)), SourceSettings("b", ("y",), -1)))),
            r"corpus\.sources\[1\]\.weight -1: give a finite number of 0 or more",
        ),
        (RunSettings(generate=SamplingSettings(length_penalty=True)), "generate.length_penalty True: give a number;"),
        (FinetuneSettings(dropout=1.0), "dropout 1.0: give a number from 0 to below 1"),
    ],
)
def test_settings_built_in_python_are_checked_the_same(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        check_settings(settings)


@pytest.mark.parametrize("kind", [RunSettings, FinetuneSettings])
def test_defaults_are_in_range(kind: type) -> None:
    check_settings(kind())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_in_range(preset: str) -> None:
    check_settings(load_config(preset))


def test_a_value_out_of_range_in_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("run: x\noptim:\n  name: adamw\n  lr: -1\n", encoding="utf-8")
    message = rf"^{file}:4: optim\.lr -1: give a finite number of 0 or more; see --help$"
    with pytest.raises(UserError, match=message):
        parse_settings(RunSettings, ["--config", str(file)], "malmoi train", "")
    with pytest.raises(UserError, match=message):
        load_config(file, run="y")
    file.write_text("run: x\noptim: {lr: 1e-3}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^optim\.lr -2: give"):
        parse_settings(RunSettings, ["--config", str(file), "--optim.lr", "-2"], "malmoi train", "")
    with pytest.raises(UserError, match=r"^optim\.lr -2: give"):
        load_config(file, optim__lr=-2)


def test_parsed_numbers_are_plain_ones() -> None:
    settings = parse_settings(RunSettings, ["--train.seed", "3", "--optim.betas", "[0, 0.5]"], "malmoi train", "")
    assert {type(settings.train.seed), *map(type, settings.optim.betas)} == {int, float}


def test_every_number_of_a_run_has_a_range_but_those_that_may_be_anything() -> None:
    plain = {
        name
        for kind in (RunSettings, FinetuneSettings)
        for name, hint in setting_types(kind).items()
        if hint in (int, float)
    }
    assert plain == {"generate.length_penalty"}
    assert all(words.startswith("a ") for words in RANGES.values())
