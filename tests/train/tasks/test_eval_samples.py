"""Samples at evaluations: what the exported model would write, and no trace of them in the training."""

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.inference.generate import sample_prompts
from malmoi.inference.model_folder import load_model
from malmoi.train.metrics.log_file import SAMPLES_FILE
from malmoi.train.metrics.sample_log import read_eval_samples
from malmoi.train.pretrain import pretrain
from malmoi.train.tasks.eval_samples import random_state_kept
from tests.launching import with_settings


def small(settings: RunSettings, folder: Path, **changes: object) -> RunSettings:
    """Return settings of six steps with dropout, evaluated after every third."""
    few = {"model__dropout": 0.1, "train__max_steps": 6, "eval__every": 3, "checkpoint__every": 3}
    return with_settings(settings, run=str(folder), **few, **changes)


@pytest.mark.parametrize("sample_tokens", [12, 40])
def test_the_last_evaluations_sample_is_what_the_exported_model_writes(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, sample_tokens: int
) -> None:
    settings = small(
        tiny_settings,
        tmp_path / "run",
        eval__sample_tokens=sample_tokens,
        generate__max_new_tokens=20,
        generate__min_new_tokens=12,
    )
    assert pretrain(settings) == 0
    samples = read_eval_samples(tmp_path / "run")
    assert [(sample.step, sample.tokens_seen) for sample in samples] == [(3, 3 * 8 * 32), (6, 6 * 8 * 32)]
    loaded = load_model(tmp_path / "run" / "model")
    length = len(loaded.tokenizer(settings.generate.prompt)["input_ids"])
    one = replace(settings.generate, num_return_sequences=1, max_new_tokens=min(sample_tokens, 32 - length))
    [drawn] = sample_prompts(loaded, [one.prompt], one)
    assert samples[-1].prompt == one.prompt
    assert samples[-1].text == drawn.samples[0] != samples[0].text


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_run_is_the_same_with_and_without_samples(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, do_sample: bool
) -> None:
    for name, tokens in (("with", 9), ("without", 0)):
        one = {} if do_sample else {"generate__do_sample": False, "generate__num_return_sequences": 1}
        assert pretrain(small(tiny_settings, tmp_path / name, eval__sample_tokens=tokens, **one)) == 0
    assert [sample.step for sample in read_eval_samples(tmp_path / "with")] == [3, 6]
    assert not (tmp_path / "without" / SAMPLES_FILE).exists()
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (tmp_path / each / "checkpoints" / "step-000006" / name for each in ("with", "without"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_sharded_run_says_that_it_draws_none(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(small(tiny_settings, tmp_path / "run", parallel__backend="fsdp2")) == 0
    said = capfd.readouterr().err.replace("\n", " ")
    assert "no samples at evaluations: under fsdp2 no rank holds a full model" in said
    assert not (tmp_path / "run" / SAMPLES_FILE).exists()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys(), "the next run would wait for other ranks"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"generate__max_new_tokens": 100}, "generate.max_new_tokens 100: with a prompt they do not fit"),
        ({"generate__max_length": 33}, "generate.max_length 33: a prompt of"),
        (
            {"generate__max_length": 2},
            r"generate.max_length 2: a prompt of (\d+) tokens leaves no room for new ones; choose more than \1",
        ),
    ],
)
def test_samples_that_will_not_fit_are_refused_before_training(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        pretrain(small(tiny_settings, tmp_path / "run", **change))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_every_generator_is_left_as_it_was() -> None:
    def state() -> tuple[object, ...]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    from transformers import set_seed

    set_seed(5)
    expected = state()
    set_seed(5)
    with random_state_kept(torch.device("cpu")):
        set_seed(6)
        state()
    assert state() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate__top_p": 3.0}, r"^generate\.top_p 3\.0: give a number from 0 to 1"),
        ({"generate__top_p": 0.0}, r"^generate\.top_p 0\.0: choose a number above 0, up to 1"),
        (
            {"generate__temperature": 0.0},
            r"^generate\.temperature 0\.0: choose a number above 0; generate\.do_sample false",
        ),
        ({"generate__num_beams": 2}, r"^generate\.num_return_sequences 3 is more than generate\.num_beams 2"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused_before_the_first_step(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(small(tiny_settings, tmp_path / "run", generate__num_return_sequences=3, **changes))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
