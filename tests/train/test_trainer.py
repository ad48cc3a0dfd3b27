"""The training loop: real runs of a tiny model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

import malmoi.train.tasks.language_modeling
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.errors import RunStopped, UserError
from malmoi.evaluation.perplexity import PerplexityResult
from malmoi.train.metrics.log_file import SAMPLES_FILE
from malmoi.train.metrics.sample_log import read_eval_samples
from malmoi.train.pretrain import pretrain
from tests.launching import as_flags, environment, metrics, run_malmoi, step_losses, two_ranks, with_settings
from tests.time_limits import wait_until


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(settings_as_yaml(with_settings(tiny_settings, model__dropout=0.1)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run_malmoi("train", *as_flags(config, run=folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_a_finished_run_leaves_all_that_the_design_names(finished_run: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "checkpoints/step-000020", "model", "tensorboard"):
        assert (finished_run / name).exists(), name
    lines = metrics(finished_run)
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert set(steps[0]) == {
        *("step", "tokens_seen", "train/loss", "train/lr", "train/grad_norm", "train/skipped_steps"),
        *("perf/tokens_per_sec", "perf/mfu", "perf/data_wait_frac", "perf/checkpoint_frac", "perf/eval_frac"),
        *("perf/slowest_rank", "perf/slowest_rank_lag", "mem/peak_mib"),
    }
    assert [line["step"] for line in lines if "val/loss" in line] == [10, 20]
    assert steps[-1]["train/loss"] < steps[0]["train/loss"] - 0.5
    assert steps[-1]["tokens_seen"] == 20 * 8 * 32


def test_a_second_start_says_that_it_is_done(
    tiny_settings: RunSettings, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "metrics.jsonl").read_bytes()
    assert pretrain(tiny_settings) == 0
    shown = capsys.readouterr().err
    assert "is finished already" in shown
    assert "bits per byte" in shown
    assert (finished_run / "metrics.jsonl").read_bytes() == before


def test_accumulating_equals_one_large_batch(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> None:
    assert pretrain(with_settings(tiny_settings, run=str(tmp_path / "run"), train__micro_batch_size=1)) == 0
    pairs = zip(step_losses(finished_run), step_losses(tmp_path / "run"), strict=True)
    assert max(abs(one - other) for one, other in pairs) < 5e-6


def test_two_ranks_log_the_losses_of_one(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    done = two_ranks(*as_flags(config, run=tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    one, two = metrics(undisturbed), metrics(tmp_path / "run")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for ours, theirs in zip(one, two, strict=True):
        for name in ("train/loss", "val/loss"):
            if name in ours:
                assert abs(ours[name] - theirs[name]) < 5e-6
        if "train/grad_norm" in ours:
            assert ours["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=1e-5)
    assert [sample.step for sample in read_eval_samples(tmp_path / "run")] == [10, 20]


def test_a_stopped_run_resumes_to_the_same_bytes(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM again and again, then SIGKILL on the next start, then to the end; dropout included."""
    folder = tmp_path / "run"
    flags = as_flags(config, run=folder, checkpoint__every=5)
    assert _train_until(flags, folder, 3, signal.SIGTERM) == 75
    stopped_at = max(int(f.name.removeprefix("step-")) for f in (folder / "checkpoints").glob("step-*"))
    assert 3 <= stopped_at < 20
    assert _train_until(flags, folder, stopped_at + 6, signal.SIGKILL) == -signal.SIGKILL
    done = run_malmoi("train", *flags)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stderr
    assert re.search(r" steps of .* epochs of [\d,]+ tokens\n", done.stderr), "a line is not wrapped in a file"
    assert step_losses(folder) == step_losses(undisturbed)
    assert (folder / SAMPLES_FILE).read_bytes() == (undisturbed / SAMPLES_FILE).read_bytes()
    expected = weights(undisturbed)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def test_a_run_that_was_killed_before_it_said_that_it_is_done_leaves_the_same_lines(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The last evaluation is done again, and counts once."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("model", "result.json"))
    done = run_malmoi("train", *as_flags(config, run=folder))
    assert done.returncode == 0, done.stderr
    before, after = (
        [(line["step"], line.get("train/loss"), line.get("val/loss")) for line in metrics(run) if "event" not in line]
        for run in (undisturbed, folder)
    )
    assert after == before


def _train_until(flags: Sequence[str], folder: Path, step: int, number: signal.Signals) -> int:
    """Start training, send a signal from when `step` is logged until the process has ended; return the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *flags], env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    file = folder / "metrics.jsonl"

    def is_logged() -> bool:
        return file.is_file() and f'"step": {step},' in file.read_text(encoding="utf-8")

    wait_until(lambda: is_logged() or process.poll() is not None, 120, f"step {step} of {folder}")

    def has_ended() -> bool:
        os.kill(process.pid, number)
        return process.poll() is not None

    wait_until(has_ended, 60, f"the end of the process after {number.name}", pause=0.002)
    return process.wait()


def test_an_evaluation_that_a_stop_interrupted_is_done_when_the_run_resumes(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = malmoi.train.tasks.language_modeling.validation_perplexity

    def stopped_within(*arguments: Any) -> PerplexityResult | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    settings = with_settings(tiny_settings, run=str(tmp_path / "run"))
    monkeypatch.setattr(malmoi.train.tasks.language_modeling, "validation_perplexity", stopped_within)
    with pytest.raises(RunStopped):
        malmoi.train(settings)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000010"]
    monkeypatch.undo()
    assert pretrain(settings) == 0
    ours, theirs = ([line for line in metrics(each) if "val/loss" in line] for each in (tmp_path / "run", finished_run))
    assert ours == theirs


def test_a_changed_corpus_is_refused(
    tiny_settings: RunSettings, finished_run: Path, korean_texts: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in korean_texts[:100]))
    changed = with_settings(tiny_settings, corpus__input=(str(file),))
    with pytest.raises(UserError, match=r"step-000020: trained on shards .*choose another --run"):
        pretrain(changed)


def test_another_model_in_the_same_folder_is_refused(tiny_settings: RunSettings, finished_run: Path) -> None:
    with pytest.raises(UserError, match=r"model.n_layer was 2 and is now 3"):
        pretrain(with_settings(tiny_settings, model__n_layer=3))


def test_a_corpus_shorter_than_a_block_is_refused(tiny_settings: RunSettings, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("짧은 글\n", encoding="utf-8")
    short = with_settings(tiny_settings, run=str(tmp_path / "run"), corpus__input=(str(file),), data__val_fraction=0.0)
    with pytest.raises(UserError, match="shorter than one block"):
        pretrain(short)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_the_fp32_curve(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, precision: str
) -> None:
    assert pretrain(with_settings(tiny_settings, run=str(tmp_path / "run"), train__precision=precision)) == 0
    half, full = step_losses(tmp_path / "run"), step_losses(finished_run)
    assert half != full
    assert max(abs(one - other) for one, other in zip(half, full, strict=True)) < 0.05
    assert weights(tmp_path / "run")["transformer.wte.weight"].dtype == torch.float32
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000020" / "state.json").read_text(encoding="utf-8"))
    assert (state["state"]["loss_scale"] is not None) == (precision == "fp16")


def test_another_projects_tokenizer_trains_a_model_too(
    tiny_settings: RunSettings, corpus_file: Path, tmp_path: Path
) -> None:
    """A byte-level BPE as GPT-2's, whose one special token begins and ends a text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2TokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train([str(corpus_file)], vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    GPT2TokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(tmp_path / "gpt2")
    theirs = with_settings(
        tiny_settings, run=str(tmp_path / "run"), train__max_steps=3, tokenizer__path=str(tmp_path / "gpt2")
    )
    assert pretrain(theirs) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.bos_token_id == model.config.eos_token_id == tokenizer.eos_token_id


def test_a_run_that_trains_already_is_not_started_twice(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".training.lock"), pytest.raises(UserError, match="another process trains here"):
        pretrain(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch_size": 0}, "train.micro_batch_size 0: give a whole number of 1 or more"),
        ({"global_batch_size": -8}, "train.global_batch_size -8: give a whole number of 1 or more"),
        ({"max_steps": 0}, "train.max_steps 0: give a whole number of 1 or more"),
    ],
)
def test_impossible_batches_are_refused(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(replace(tiny_settings, run=str(tmp_path / "run"), train=replace(tiny_settings.train, **change)))


def test_a_run_says_beforehand_what_it_will_do_without(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"), train__max_steps=4, data__val_fraction=0.0)
    assert pretrain(settings) == 0
    shown = " ".join(capfd.readouterr().err.split())
    assert "schedule.warmup_steps 4: the learning rate rises through all 4 steps of the run; lower it" in shown
    assert "the validation split is empty, so there will be no validation loss; raise data.val_fraction" in shown


def test_zero_3_shows_no_warning_about_what_deepspeed_calls(config: Path, finished_run: Path, tmp_path: Path) -> None:
    """Several times a step: newer torch has other names for what gathers and scatters."""
    done = run_malmoi("train", *as_flags(config, run=tmp_path / "run", train__max_steps=2, parallel__backend="zero3"))
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr


def test_a_run_without_deepspeed_says_nothing_of_it(config: Path, finished_run: Path, tmp_path: Path) -> None:
    """`transformers` imports it when a model is saved, and it warns of a processor without a GPU."""
    done = run_malmoi("train", *as_flags(config, run=tmp_path / "run", train__max_steps=1))
    assert done.returncode == 0, done.stderr
    assert "accelerator" not in done.stdout + done.stderr
