"""Samples as training goes on: what the exported model would write, and no trace of them in the training."""

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import BadInput
from configs.schema import RunSettings
from inference.generate import generate
from inference.model_folder import load_model
from train.look_sampler import undisturbed_random_state
from train.run import run
from train.samples import SAMPLES_FILE, LookSample, drop_samples_after, read_samples, write_sample


def small(settings: RunSettings, folder: Path, **sampling: object) -> RunSettings:
    """Six steps with dropout and a look at each third."""
    return replace(
        settings,
        run=str(folder),
        model=replace(settings.model, dropout=0.1),
        train=replace(settings.train, steps=6, evaluate_every=3, save_every=3),
        sampling=replace(settings.sampling, **sampling),
    )


@pytest.mark.parametrize("every_look", [12, 40])
def test_the_last_looks_sample_is_what_the_exported_model_writes(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, every_look: int
) -> None:
    settings = small(tiny_settings, tmp_path / "run", every_look=every_look, max_new_tokens=20, min_new_tokens=12)
    assert run(settings) == 0
    samples = read_samples(tmp_path / "run")
    assert [(sample.step, sample.tokens) for sample in samples] == [(3, 3 * 8 * 32), (6, 6 * 8 * 32)]
    loaded = load_model(tmp_path / "run" / "model")
    length = len(loaded.tokenizer(settings.sampling.prompt)["input_ids"])
    one = replace(settings.sampling, num_return_sequences=1, max_new_tokens=min(every_look, 32 - length))
    [drawn] = generate(loaded, [one.prompt], one)
    assert samples[-1].prompt == one.prompt
    assert samples[-1].text == drawn.samples[0] != samples[0].text


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_run_is_the_same_with_and_without_samples(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, do_sample: bool
) -> None:
    for name, tokens in (("with", 9), ("without", 0)):
        one = {} if do_sample else {"do_sample": False, "num_return_sequences": 1}
        assert run(small(tiny_settings, tmp_path / name, every_look=tokens, **one)) == 0
    assert [sample.step for sample in read_samples(tmp_path / "with")] == [3, 6]
    assert not (tmp_path / "without" / SAMPLES_FILE).exists()
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (tmp_path / each / "checkpoints" / "step-000006" / name for each in ("with", "without"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_sharded_run_says_that_it_draws_none(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = small(tiny_settings, tmp_path / "run")
    assert run(replace(settings, parallel=replace(settings.parallel, backend="fsdp2"))) == 0
    said = capfd.readouterr().err.replace("\n", " ")
    assert "no samples at looks at held-out text: under fsdp2 no rank holds a whole model" in said
    assert not (tmp_path / "run" / SAMPLES_FILE).exists()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys(), "the next run would look for other ranks"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_new_tokens": 100}, "sampling.max_new_tokens 100: a prompt of"),
        ({"max_length": 33}, "sampling.max_length 33: a prompt of"),
        ({"max_length": 2}, r"sampling.max_length 2: a prompt of (\d+) tokens is as long already; choose more than \1"),
        ({"every_look": -1}, "sampling.every_look -1: choose 0 or more"),
    ],
)
def test_samples_that_will_not_fit_are_refused_before_training(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        run(small(tiny_settings, tmp_path / "run", **change))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_lines_of_steps_that_are_done_again_are_dropped_and_a_step_has_one_sample(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_sample(tmp_path, LookSample(step, step * 8, "앞", f"앞\n{step}"))
    with (tmp_path / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "tok')
    assert [sample.step for sample in read_samples(tmp_path)] == [10, 20, 30]
    drop_samples_after(tmp_path, 20)
    write_sample(tmp_path, LookSample(20, 160, "앞", "앞 다시"))
    assert [(sample.step, sample.text) for sample in read_samples(tmp_path)] == [(10, "앞\n10"), (20, "앞 다시")]
    assert (tmp_path / SAMPLES_FILE).read_text(encoding="utf-8").count("\n") == 2


def test_a_sample_keeps_every_character_that_splits_lines(tmp_path: Path) -> None:
    text = "앞\u2028뒤\u2029\u0085\x0b\x0c\x1c\r끝"
    for step in (10, 20):
        write_sample(tmp_path, LookSample(step, step * 8, "앞", text))
    assert [(sample.step, sample.text) for sample in read_samples(tmp_path)] == [(10, text), (20, text)]


def test_every_generator_stands_where_it_stood() -> None:
    def state() -> tuple[object, ...]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    from transformers import set_seed

    set_seed(5)
    expected = state()
    set_seed(5)
    with undisturbed_random_state(torch.device("cpu")):
        set_seed(6)
        state()
    assert state() == expected


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"top_p": 3.0}, r"^sampling\.top_p 3\.0: choose a share above 0, up to 1"),
        ({"temperature": -1.0}, r"^sampling\.temperature -1\.0: choose a number above 0; sampling\.do_sample false"),
        ({"num_beams": 2}, r"^sampling\.num_return_sequences 3 is more than sampling\.num_beams 2"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused_before_the_first_step(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, sampling: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(small(tiny_settings, tmp_path / "run", **{"num_return_sequences": 3, **sampling}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
