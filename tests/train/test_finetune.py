"""`malmoi finetune` as a whole: real runs of a tiny model on labelled rows that lie in the repository."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.example_trial
from configs.command_line import settings_as_yaml
from configs.errors import BadInput, RunFailed
from configs.finetune_settings import FinetuneSettings, TaskKind
from tests.launching import ROOT, as_flags, environment, malmoi, metrics, step_losses
from tests.train.labelled import FILES, read_examples, rows_of, settings_for
from train.checkpoint import best_whole_checkpoint
from train.example_tokens import example_tokenizer
from train.examples import ExampleBatch
from train.fine_tuning import joint_nats
from train.finetune import finetune
from train.finetune_result import FinetuneResult, finished_finetuning


def result_of(settings: FinetuneSettings) -> FinetuneResult:
    result = finished_finetuning(Path(settings.run))
    assert result is not None
    return result


def validation_losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["held_out_loss"] for line in metrics(run) if "held_out_loss" in line}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def model(finished_run: Path) -> Path:
    return finished_run / "model"


@pytest.fixture(scope="module")
def settings(model: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneSettings:
    """Sentiment of film reviews, with GPT-1's dropout."""
    return settings_for("classification", model, tmp_path_factory.mktemp("sentiment"))


@pytest.fixture(scope="module")
def config(settings: FinetuneSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "finetune.yaml"
    file.write_text(settings_as_yaml(settings))
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = malmoi("finetune", *as_flags(config, run=folder))
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stderr
    return folder


SERVE = """
import json, sys
from transformers import pipeline
classifier = pipeline("text-classification", model=sys.argv[1], truncation=True)
rows = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
found = classifier([row["text"] for row in rows], batch_size=5)
print(type(classifier.model).__name__, *(each["label"] for each in found))
"""


def test_transformers_pipeline_serves_the_model_without_malmoi(undisturbed: Path, tmp_path: Path) -> None:
    (result,) = [finished_finetuning(undisturbed)]
    assert result is not None
    file = result.files[0].file
    words = [sys.executable, "-c", SERVE, str(undisturbed / "model"), file]
    environ = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kind, *answers = done.stdout.split()
    assert kind == "GPT2ForSequenceClassification"
    right = [str(json.loads(line)["label"]) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    hits = sum(answer == label for answer, label in zip(answers, right, strict=True))
    assert hits / len(right) == result.files[0].scores[0].value


@pytest.mark.parametrize("kind", list(FILES))
def test_each_kind_of_task_learns_its_training_rows(kind: TaskKind, model: Path, tmp_path: Path) -> None:
    asked = settings_for(kind, model, tmp_path, steps=40, evaluate_every=40, learning_rate=1e-2, warmup_steps=5)
    asked = replace(asked, dropout=0.0, task=replace(asked.task, validation=None, test=asked.task.train, limit=16))
    assert finetune(asked) == 0
    result = result_of(asked)
    assert [score.name for score in result.files[0].scores] == {
        "similarity": ["pearson", "spearman"],
        "multiple_choice": ["accuracy"],
    }.get(kind, ["accuracy", "macro_f1", "matthews"])
    chance = {"classification": 1 / 2, "entailment": 1 / 3, "similarity": 0.0, "multiple_choice": 1 / 2}[kind]
    assert result.files[0].scores[0].value > chance + 0.15
    losses = step_losses(Path(asked.run))
    assert losses[-1] < losses[0]


def test_the_model_is_that_of_the_lowest_validation_loss(undisturbed: Path) -> None:
    result = finished_finetuning(undisturbed)
    assert result is not None
    losses = validation_losses(undisturbed)
    assert sorted(losses) == [4, 8, 12]
    best = min(losses, key=lambda step: (losses[step], step))
    assert result.model_step == best
    assert result.files[0].loss == pytest.approx(losses[best], rel=1e-6)


def test_training_ends_when_the_validation_loss_has_not_fallen(model: Path, tmp_path: Path) -> None:
    """Validation rows whose labels are the wrong way round: the more is learnt, the worse."""
    asked = settings_for(
        "classification", model, tmp_path, steps=60, evaluate_every=4, learning_rate=5e-3, warmup_steps=1
    )
    assert asked.task.validation is not None
    wrong = [{**row, "label": 1 - row["label"]} for row in rows_of("classification", "", 64)]
    Path(asked.task.validation).write_text("".join(json.dumps(row) + "\n" for row in wrong))
    asked = replace(asked, patience=2, dropout=0.0)
    assert finetune(asked) == 0
    result, losses = result_of(asked), validation_losses(Path(asked.run))
    assert result.steps < 60
    best = min(losses, key=lambda step: (losses[step], step))
    assert result.model_step == best
    assert result.steps == best + 2 * 4
    # Nothing is left to do, and a start that finds no result knows it from what is on disk.
    (Path(asked.run) / "finetune.json").unlink()
    assert finetune(asked) == 0
    assert result_of(asked) == result


def test_a_stopped_fine_tuning_goes_on_to_the_same_bytes(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, then to the end; dropout included."""
    folder = tmp_path / "run"
    flags = as_flags(config, run=folder, train__save_every=2)
    assert _run_until(flags, folder, 6, signal.SIGKILL) == -signal.SIGKILL
    done = malmoi("finetune", *flags)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert step_losses(folder) == step_losses(undisturbed)
    assert validation_losses(folder) == validation_losses(undisturbed)
    expected = weights(undisturbed)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def _run_until(flags: list[str], folder: Path, step: int, number: signal.Signals) -> int:
    words = [sys.executable, "-m", "launch", "finetune", *flags]
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        file = folder / "metrics.jsonl"
        if file.is_file() and f'"step": {step},' in file.read_text():
            os.kill(process.pid, number)
            break
        time.sleep(0.005)
    return process.wait(timeout=120)


def test_two_ranks_of_each_way_to_share_give_the_losses_of_one(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    backends = ("ddp", "zero3", "fsdp2")
    lists = [["finetune", *as_flags(config, run=tmp_path / backend, parallel__backend=backend)] for backend in backends]
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(lists))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "tests" / "train" / "many_runs.py"), str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    expected = weights(undisturbed)
    one = finished_finetuning(undisturbed)
    assert one is not None
    for backend in backends:
        run = tmp_path / backend
        assert step_losses(run) == pytest.approx(step_losses(undisturbed), abs=5e-6), backend
        assert validation_losses(run) == pytest.approx(validation_losses(undisturbed), abs=5e-6), backend
        two = finished_finetuning(run)
        assert two is not None
        assert two.model_step == one.model_step
        for name, tensor in weights(run).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_fresh_weights_take_nothing_but_shape_and_tokenizer(model: Path, tmp_path: Path) -> None:
    first = {}
    for fresh in (False, True):
        asked = settings_for("classification", model, tmp_path / str(fresh), steps=1, evaluate_every=1)
        assert finetune(replace(asked, fresh_weights=fresh)) == 0
        first[fresh] = step_losses(Path(asked.run))[0]
    # Half of a text of random tokens costs ln(2002) / 2 = 3.8 nats beside the label's 0.7.
    assert first[True] == pytest.approx(4.5, abs=0.1)
    assert first[False] < first[True] - 0.3


def test_a_damaged_best_checkpoint_is_passed_over(undisturbed: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(undisturbed / "checkpoints", checkpoints)
    best, faults = best_whole_checkpoint(checkpoints)
    assert best is not None
    assert not faults
    (best.folder / "model.safetensors").write_bytes(b"")
    other, faults = best_whole_checkpoint(checkpoints)
    assert other is not None
    assert other.folder != best.folder
    assert "model.safetensors" in faults[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"init_from": "/nowhere"}, "/nowhere: no such folder"),
        ({"dropout": 1.0}, "dropout 1.0: choose 0 or more"),
        ({"patience": 1, "task": {"validation": None}}, "patience needs a validation file"),
        ({"patience": -1}, "patience -1: choose 0 or more"),
        ({"task": {"train": "/nowhere.jsonl"}}, "/nowhere.jsonl: no such file"),
        ({"task": {"language_model_weight": -1.0}}, "language_model_weight -1.0: choose 0 or more"),
        ({"train": {"save_every": 3}}, "train.save_every 3 does not divide train.evaluate_every 4"),
        ({"train": {"keep_best": 0}}, "train.keep_best 0 would delete"),
        ({"train": {"micro_batch": 3}}, "train.global_batch 8 is no multiple of train.micro_batch 3"),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    settings: FinetuneSettings, change: dict[str, object], says: str, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {
        name: replace(getattr(settings, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(BadInput) as caught:
        finetune(replace(settings, run=str(tmp_path / "run"), **changed))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dry_run_tells_what_it_would_take_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    done = malmoi("finetune", *as_flags(config, run=tmp_path / "run"), "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "12 of 8 examples (4 examples x 1 ranks x 2 accumulated)" in done.stdout
    assert "examples      96, 1.50 epochs of 64" in done.stdout
    for told in ("parameters    ", "zero3", "for 4 checkpoints of", "s seen)", "memory seen"):
        assert told in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_largest_micro_batch_is_tried_on_the_longest_examples_and_the_run_is_the_same(
    settings: FinetuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shapes: list[tuple[int, ...]] = []

    def little_memory(model: Any, batch: ExampleBatch, *rest: Any) -> torch.Tensor:
        shapes.append(batch.ids.shape)
        if len(batch.answers) > 2:
            raise torch.OutOfMemoryError
        return joint_nats(model, batch, *rest)

    monkeypatch.setattr(train.example_trial, "joint_nats", little_memory)
    runs = {}
    for size in (2, "auto"):
        loop = replace(settings.train, micro_batch=size, steps=5)
        runs[size] = tmp_path / str(size)
        assert finetune(replace(settings, run=str(runs[size]), dropout=0.0, train=loop)) == 0
    assert "(2 examples x 1 ranks x 4 accumulated)" in capfd.readouterr().err.replace("\n", " ")
    tokenizer = example_tokenizer(Path(settings.init_from), 32)
    longest = max(map(len, read_examples(settings.task.train, settings.task, tokenizer).ids))
    assert shapes == [(1, longest), (8, longest), (4, longest), (2, longest)]
    assert step_losses(runs["auto"]) == step_losses(runs[2])


def test_the_commonest_answer_of_training_stands_beside_the_scores(model: Path, tmp_path: Path) -> None:
    asked = settings_for("classification", model, tmp_path, steps=1, evaluate_every=1)
    rows = [{"text": f"글 {number}", "label": int(number < 3)} for number in range(8)]
    Path(asked.task.train).write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = replace(asked, task=replace(asked.task, validation=None, test=asked.task.train))
    assert finetune(asked) == 0
    [part] = result_of(asked).files
    constant = {score.name: score.value for score in part.most_frequent}
    # Always class 0: right for 5 of 8; F1 of it 2 x 5 / (2 x 5 + 3), and 0 of the other.
    assert constant == {"accuracy": 5 / 8, "macro_f1": pytest.approx(10 / 13 / 2), "matthews": 0.0}


def test_a_model_of_another_architecture_is_one_line_and_exit_code_2(config: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
    done = malmoi("finetune", *as_flags(config, run=tmp_path / "run", init_from=folder))
    assert done.returncode == 2
    assert done.stderr == f"malmoi finetune: {folder}: holds a model of type llama; --init_from takes a GPT-2\n"


def test_a_fine_tuned_model_is_not_fine_tuned_again(
    settings: FinetuneSettings, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"has a token <delimiter> already; give the model before its fine-tuning"):
        finetune(replace(settings, run=str(tmp_path / "run"), init_from=str(undisturbed / "model")))


def test_texts_that_were_cut_are_counted_and_said(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = settings_for("classification", model, tmp_path, steps=1)
    rows = rows_of("classification", "", 8)
    rows[3]["text"] = "아주 긴 글이다 " * 40
    Path(asked.task.train).write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = replace(asked, task=replace(asked.task, validation=None))
    assert finetune(asked) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if "were cut" in line]
    assert len(told) == 1
    assert told[0].startswith(f"{asked.task.train}: ")
    assert told[0].endswith("of 8 texts are longer than the model's 32 tokens and were cut")
    assert int(told[0].removeprefix(f"{asked.task.train}: ").split()[0]) >= 1


def test_another_run_in_the_folder_is_refused(settings: FinetuneSettings, undisturbed: Path) -> None:
    with pytest.raises(BadInput, match=r"holds another run: dropout was 0\.1 and is now 0\.2"):
        finetune(replace(settings, run=str(undisturbed), dropout=0.2))


def test_gpt1s_settings_are_the_defaults() -> None:
    """Radford et al. 2018, section 4.1, "Fine-tuning details"."""
    defaults = FinetuneSettings()
    assert (defaults.train.learning_rate, defaults.train.global_batch, defaults.train.epochs) == (6.25e-5, 32, 3.0)
    assert (defaults.train.schedule, defaults.train.final_learning_rate) == ("linear", 0.0)
    assert (defaults.train.warmup_share, defaults.task.language_model_weight, defaults.dropout) == (0.002, 0.5, 0.1)


@pytest.mark.parametrize("kind", ["classification", "similarity"])
def test_a_model_that_has_gone_wrong_is_not_exported(kind: TaskKind, model: Path, tmp_path: Path) -> None:
    asked = settings_for(kind, model, tmp_path, steps=4, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(RunFailed, match=r"validation\.jsonl is nan, so no model is exported; fine-tune again"):
        finetune(asked)
    assert not (Path(asked.run) / "model").exists()
