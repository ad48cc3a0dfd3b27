"""`malmoi finetune` from end to end: real runs of a tiny model on labeled rows that the repository has."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import pipeline

import malmoi.train.tasks.classification
from malmoi.configs.finetune import FinetuneSettings, TaskKind
from malmoi.configs.parser import settings_as_yaml
from malmoi.errors import RunFailed, UserError
from malmoi.evaluation.calibration import calibration
from malmoi.evaluation.label_baselines import fit_baselines
from malmoi.evaluation.label_metrics import Predictions, label_metrics
from malmoi.train.checkpoint.format import best_valid_checkpoint
from malmoi.train.checkpoint.storage import open_storage
from malmoi.train.data.labeled import ExampleBatch, encoded, example_tokenizer
from malmoi.train.data.labeled_rows import read_rows
from malmoi.train.exported_classifier import exported_outputs
from malmoi.train.finetune import finetune
from malmoi.train.finetune_result import FinetuneResult, finished_finetuning, predictions_file
from malmoi.train.metrics.records import read_metrics, tracked_values
from malmoi.train.tasks.classification import ANSWERS, joint_loss_sum, mean_loss
from tests.launching import as_flags, environment, metrics, run_malmoi, step_losses, with_settings
from tests.time_limits import seconds, wait_until
from tests.train.labeled import FILES, read_examples, rows_of, settings_for, written
from tests.train.ranks import run_many


def result_of(settings: FinetuneSettings) -> FinetuneResult:
    result = finished_finetuning(Path(settings.run))
    assert result is not None
    return result


def validation_losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["val/loss"] for line in metrics(run) if "val/loss" in line}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def model(finished_run: Path) -> Path:
    return finished_run / "model"


@pytest.fixture(scope="module")
def settings(model: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneSettings:
    """Return settings for the sentiment of film reviews, with GPT-1's dropout."""
    return settings_for("classification", model, tmp_path_factory.mktemp("sentiment"))


@pytest.fixture(scope="module")
def config(settings: FinetuneSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "finetune.yaml"
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run_malmoi("finetune", *as_flags(config, run=folder))
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
    result = finished_finetuning(undisturbed)
    assert result is not None
    file = result.files[0].file
    words = [sys.executable, "-c", SERVE, str(undisturbed / "model"), file]
    environ = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=seconds(120), check=False
    )
    assert done.returncode == 0, done.stderr
    kind, *answers = done.stdout.split()
    assert kind == "GPT2ForSequenceClassification"
    right = [str(json.loads(line)["label"]) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    hits = sum(answer == label for answer, label in zip(answers, right, strict=True))
    assert hits / len(right) == result.files[0].scores[0].value


@pytest.mark.parametrize("kind", ["classification", "entailment", "similarity", "multiple_choice"])
def test_scores_are_those_of_the_exported_model_by_transformers_pipeline(
    kind: TaskKind, model: Path, tmp_path: Path
) -> None:
    """Training computes in bf16, whose answers differ."""
    asked = settings_for(kind, model, tmp_path, max_steps=8, eval_every=4, lr=1e-2)
    asked = with_settings(asked, train__precision="bf16")
    assert finetune(asked) == 0
    result, folder = result_of(asked), Path(asked.run) / "model"
    rows = read_rows(str(asked.task.validation), asked.task)
    classifier = pipeline("text-classification", model=str(folder), truncation=True)
    outputs = []
    for row in rows:
        pairs = [{"text": text} | ({} if other is None else {"text_pair": other}) for text, other in row.sequences]
        found = [classifier(pair, top_k=None, function_to_apply="none") for pair in pairs]
        by_label = [{each["label"]: each["score"] for each in one} for one in found]
        if kind == "similarity":
            outputs.append([sum(each["LABEL_0"] for each in by_label)])
        elif kind == "multiple_choice":
            outputs.append([each["LABEL_0"] for each in by_label])
        else:
            outputs.append([by_label[0][name] for name in result.classes])
    examples = encoded(rows, "", asked.task, result.classes, example_tokenizer(model, 32))
    ours = exported_outputs(folder, examples, torch.device("cpu"), kind == "similarity")
    assert ours.tolist() == np.array(outputs, dtype=np.float32).tolist()
    assert result.files[0].loss == mean_loss(ours.astype(np.float64), examples, kind)
    lines = predictions_file(Path(asked.run), "validation").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["place"] for record in records] == [row.place for row in rows]
    if kind != "similarity":
        hits = int((ours.argmax(1) == examples.answers).sum())
        assert result.files[0].scores[0].value == hits / len(rows)
        assert sum(record["predicted"] == record["label"] for record in records) == hits
    if kind == "classification":
        found = [classifier(row.sequences[0][0], top_k=None) for row in rows]
        by_label = [{each["label"]: each["score"] for each in one} for one in found]
        assert [record["outputs"] for record in records] == [[one[name] for name in result.classes] for one in by_label]
        assert [record["texts"] for record in records] == [[row.sequences[0][0]] for row in rows]
        confusion = np.array(result.files[0].confusion)
        assert confusion.sum() == len(rows) and confusion.trace() == hits
        assert [each.examples for each in result.files[0].classes] == confusion.sum(1).tolist()
    if kind == "multiple_choice":
        assert records[0]["texts"] == list(dict.fromkeys(sum(rows[0].sequences, ())))


@pytest.mark.parametrize("kind", list(FILES))
def test_each_kind_of_task_learns_its_training_rows(kind: TaskKind, model: Path, tmp_path: Path) -> None:
    asked = settings_for(kind, model, tmp_path, max_steps=40, eval_every=40, lr=1e-2, warmup_steps=5)
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
    """Validation rows whose labels are the wrong way round: the more is learned, the worse."""
    asked = settings_for("classification", model, tmp_path, max_steps=60, eval_every=4, lr=5e-3, warmup_steps=1)
    assert asked.task.validation is not None
    wrong = [{**row, "label": 1 - row["label"]} for row in rows_of("classification", "", 64)]
    written(Path(asked.task.validation), wrong)
    asked = with_settings(asked, eval__patience=2, dropout=0.0)
    assert finetune(asked) == 0
    result, losses = result_of(asked), validation_losses(Path(asked.run))
    assert result.steps < 60
    best = min(losses, key=lambda step: (losses[step], step))
    assert result.model_step == best
    assert result.steps == best + 2 * 4
    # Nothing is left to do, and a start that finds no result knows it from what is on disk.
    (Path(asked.run) / "finetune.json").unlink()
    assert finetune(asked) == 0
    assert replace(result_of(asked), recorded=()) == replace(result, recorded=()), "but for the event in its log"


def test_a_killed_fine_tuning_resumes_to_the_same_bytes(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, then to the end; dropout included."""
    folder = tmp_path / "run"
    flags = as_flags(config, run=folder, checkpoint__every=2)
    assert _run_until(flags, folder, 6, signal.SIGKILL) == -signal.SIGKILL
    done = run_malmoi("finetune", *flags)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stderr
    assert step_losses(folder) == step_losses(undisturbed)
    assert validation_losses(folder) == validation_losses(undisturbed)
    expected = weights(undisturbed)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def _run_until(flags: Sequence[str], folder: Path, step: int, number: signal.Signals) -> int:
    words = [sys.executable, "-m", "malmoi.launch", "finetune", *flags]
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    file = folder / "metrics.jsonl"

    def is_there() -> bool:
        assert process.poll() is None, "it ended before the step"
        return file.is_file() and f'"step": {step},' in file.read_text(encoding="utf-8")

    try:
        wait_until(is_there, 120, f"step {step} of {folder}")
        os.kill(process.pid, number)
        return process.wait(timeout=seconds(60))
    finally:
        process.kill()


def test_two_ranks_of_each_backend_give_the_losses_of_one(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    backends = ("ddp", "zero3", "fsdp2")
    lists = [["finetune", *as_flags(config, run=tmp_path / backend, parallel__backend=backend)] for backend in backends]
    run_many(2, lists, tmp_path)
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


def test_a_random_init_takes_nothing_but_shape_and_tokenizer(model: Path, tmp_path: Path) -> None:
    first = {}
    for is_random in (False, True):
        asked = settings_for("classification", model, tmp_path / str(is_random), max_steps=1, eval_every=1)
        assert finetune(replace(asked, random_init=is_random)) == 0
        first[is_random] = step_losses(Path(asked.run))[0]
    # Half of a text of random tokens costs ln(2002) / 2 = 3.8 nats beside the label's 0.7.
    assert first[True] == pytest.approx(4.5, abs=0.1)
    assert first[False] < first[True] - 0.3


def test_a_damaged_best_checkpoint_is_skipped(undisturbed: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(undisturbed / "checkpoints", checkpoints)
    storage = open_storage(str(checkpoints))
    best, errors = best_valid_checkpoint(storage)
    assert best is not None
    assert not errors
    (best.folder / "model.safetensors").write_bytes(b"")
    other, errors = best_valid_checkpoint(storage)
    assert other is not None
    assert other.folder != best.folder
    assert "model.safetensors" in errors[0]


def test_trackers_get_each_score_by_its_name(undisturbed: Path) -> None:
    events = EventAccumulator(str(undisturbed / "tensorboard" / undisturbed.name))
    events.Reload()
    evaluations = read_metrics(undisturbed).task_vals
    assert [record.step for record in evaluations] == [4, 8, 12]
    names = {"val/loss", "val/accuracy", "val/macro_f1", "val/matthews", "tokens_seen"}
    assert tracked_values(evaluations[0]).keys() == names
    for name in names - {"tokens_seen"}:
        expected = {record.step: tracked_values(record)[name] for record in evaluations}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_from": ""}, "--init_from missing; see `malmoi finetune --help`"),
        ({"init_from": "/nowhere"}, "/nowhere: no such folder"),
        ({"dropout": 1.0}, "dropout 1.0: give a number from 0 to below 1"),
        ({"eval__patience": 1, "task__validation": None}, "eval.patience needs a validation file"),
        ({"task__train": "/nowhere.jsonl"}, "/nowhere.jsonl: no such file"),
        ({"checkpoint__every": 3}, "checkpoint.every 3 does not divide eval.every 4"),
        ({"checkpoint__keep_best": 0}, "checkpoint.keep_best 0 would delete"),
        ({"train__micro_batch_size": 3}, "train.global_batch_size 8 is no multiple of train.micro_batch_size 3"),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    settings: FinetuneSettings, changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        finetune(with_settings(settings, run=str(tmp_path / "run"), **changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"init_from": "nowhere"}, "nowhere: no such folder"), ({"task__test": "none"}, "none: no such")],
)
def test_a_start_without_model_or_examples_leaves_no_folder(
    settings: FinetuneSettings, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        finetune(with_settings(settings, run=str(tmp_path / "run"), **change))
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_it_would_take_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    done = run_malmoi("finetune", *as_flags(config, run=tmp_path / "run"), "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "12 of 8 examples (4 examples x 1 rank x 2 accumulated)" in done.stdout
    assert "examples      96, 1.50 epochs of 64" in done.stdout
    for shown in ("parameters    ", "zero3", "for 4 checkpoints of", "(measured: ", "memory seen"):
        assert shown in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_largest_micro_batch_is_tried_on_the_longest_examples_and_the_run_is_the_same(
    settings: FinetuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shapes: list[tuple[int, ...]] = []

    def little_memory(model: Any, batch: ExampleBatch, *rest: Any) -> torch.Tensor:
        shapes.append(batch.ids.shape)
        if len(batch.answers) > 2:
            raise torch.OutOfMemoryError
        return joint_loss_sum(model, batch, *rest)

    few = with_settings(settings, dropout=0.0, train__max_steps=5)
    runs: dict[int | str, Path] = {}
    for size in (2, "auto"):
        if size == "auto":
            monkeypatch.setattr(malmoi.train.tasks.classification, "joint_loss_sum", little_memory)
        runs[size] = tmp_path / str(size)
        assert finetune(with_settings(few, run=str(runs[size]), train__micro_batch_size=size)) == 0
    assert "(2 examples x 1 rank x 4 accumulated)" in capfd.readouterr().err.replace("\n", " ")
    tokenizer = example_tokenizer(Path(settings.init_from), 32)
    longest = max(map(len, read_examples(settings.task.train, settings.task, tokenizer).ids))
    assert shapes[:4] == [(1, longest), (8, longest), (4, longest), (2, longest)]
    assert all(shape[0] == 2 for shape in shapes[4:]), "those are the steps"
    assert step_losses(runs["auto"]) == step_losses(runs[2])


def test_the_scores_of_the_most_frequent_answer_are_beside_the_models(model: Path, tmp_path: Path) -> None:
    asked = settings_for("classification", model, tmp_path, max_steps=1, eval_every=1)
    rows = [{"text": f"글 {number}", "label": int(number < 3)} for number in range(8)]
    written(Path(asked.task.train), rows)
    asked = replace(asked, task=replace(asked.task, validation=None, test=asked.task.train))
    assert finetune(asked) == 0
    [part] = result_of(asked).files
    constant = {score.name: score.value for score in part.most_frequent}
    # Always class 0: right for 5 of 8; F1 of it 2 x 5 / (2 x 5 + 3), and 0 of the other.
    assert constant == {"accuracy": 5 / 8, "macro_f1": pytest.approx(10 / 13 / 2), "matthews": 0.0}


@pytest.mark.parametrize("kind", list(FILES))
def test_baselines_and_calibration_are_of_the_rows_that_the_model_is_scored_on(
    kind: TaskKind, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = with_settings(settings_for(kind, model, tmp_path, max_steps=1, eval_every=1), eval__baselines=True)
    assert finetune(asked) == 0
    shown = capfd.readouterr().err
    [part] = result_of(asked).files
    train, test = (read_rows(str(file), asked.task) for file in (asked.task.train, asked.task.validation))
    names = {name: number for number, name in enumerate(result_of(asked).classes)}
    answers = [
        np.array([names[str(row.answer)] if kind in ("classification", "entailment") else row.answer for row in rows])
        for rows in (train, test)
    ]
    texts = [[row.texts(kind) for row in rows] for rows in (train, test)]
    for record, fitted in zip(part.baselines, fit_baselines(ANSWERS[kind], texts[0], answers[0]), strict=True):
        predicted = Predictions(ANSWERS[kind], fitted.predict(texts[1]), answers[1].astype(np.float32))
        expected = label_metrics(predicted, resamples=0)
        assert record.name == fitted.name and record.note == ""
        assert [(score.name, score.value) for score in record.scores] == [(each.name, each.value) for each in expected]
        assert f"{record.scores[0].value:.4f}" in shown
    assert [record.name for record in part.baselines] == ["words", "character n-grams"]
    lines = predictions_file(Path(asked.run), "validation").read_text(encoding="utf-8").splitlines()
    outputs = np.array([json.loads(line)["outputs"] for line in lines])
    if kind == "similarity":
        assert part.calibration is None
        return
    if kind == "multiple_choice":
        outputs = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    assert part.calibration is not None
    assert part.calibration.error == pytest.approx(calibration(outputs, answers[1]).error, abs=1e-6)
    assert f"{part.calibration.error:.4f}" in shown


def test_a_run_learns_from_nsmc_as_it_is_distributed(model: Path, tmp_path: Path) -> None:
    """A table with tabs called .txt, an empty review, and quotes that quote nothing."""
    asked = settings_for("classification", model, tmp_path, max_steps=1, eval_every=1)
    for file, part in (("ratings_train.txt", ""), ("ratings_test.txt", "_examples")):
        rows = rows_of("classification", part, 24)
        lines = [f'{number}\t"{row["text"]}\t{row["label"]}' for number, row in enumerate(rows)]
        (tmp_path / file).write_text("\n".join(["id\tdocument\tlabel", *lines, "99\t\t0", ""]), encoding="utf-8")
    named = {"train": str(tmp_path / "ratings_train.txt"), "test": str(tmp_path / "ratings_test.txt")}
    task = {f"task__{name}": value for name, value in {**named, "validation": None, "fields": ("document",)}.items()}
    with pytest.raises(UserError, match=r"ratings_train\.txt:26: the text in 'document' is empty"):
        finetune(with_settings(asked, **task))
    skipping = {"task__on_error": "skip", "task__max_error_rate": 0.1}
    assert finetune(with_settings(asked, **task, **skipping, run=str(tmp_path / "skipping"))) == 0
    result = finished_finetuning(tmp_path / "skipping")
    assert result is not None and (result.examples, result.files[0].examples) == (24, 24)
    assert result.classes == ("0", "1")


def test_a_model_of_another_architecture_is_one_line_and_exit_code_2(config: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "opt", "hidden_size": 32}), encoding="utf-8")
    done = run_malmoi("finetune", *as_flags(config, run=tmp_path / "run", init_from=folder))
    assert done.returncode == 2
    says = f"{folder}: holds a model of type opt; --init_from takes gpt2, llama, qwen3"
    assert done.stderr == f"malmoi finetune: {says}\n"


def test_a_fine_tuned_model_is_not_fine_tuned_again(
    settings: FinetuneSettings, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"has a token <delimiter> already; give the model before its fine-tuning"):
        finetune(replace(settings, run=str(tmp_path / "run"), init_from=str(undisturbed / "model")))


def test_texts_that_were_truncated_are_counted_and_reported(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = settings_for("classification", model, tmp_path, max_steps=1)
    rows = rows_of("classification", "", 8)
    rows[3]["text"] = "아주 긴 글이다 " * 40
    written(Path(asked.task.train), rows)
    asked = replace(asked, task=replace(asked.task, validation=None))
    assert finetune(asked) == 0
    [shown] = [line for line in capfd.readouterr().err.splitlines() if "were truncated" in line]
    assert shown.startswith(f"{asked.task.train}: ")
    assert shown.endswith("of 8 texts are longer than the model's 32 tokens and were truncated")
    assert int(shown.removeprefix(f"{asked.task.train}: ").split()[0]) >= 1


def test_another_run_in_the_folder_is_refused(settings: FinetuneSettings, undisturbed: Path) -> None:
    with pytest.raises(UserError, match=r"holds another run: dropout was 0\.1 and is now 0\.2"):
        finetune(replace(settings, run=str(undisturbed), dropout=0.2))


def test_gpt1s_settings_are_the_defaults() -> None:
    """Radford et al. 2018, section 4.1, "Fine-tuning details"."""
    defaults = FinetuneSettings()
    assert (defaults.optim.lr, defaults.train.global_batch_size, defaults.train.epochs) == (6.25e-5, 32, 3.0)
    assert (defaults.optim.betas, defaults.optim.weight_decay) == ((0.9, 0.999), 0.01)
    assert (defaults.schedule.name, defaults.schedule.min_lr_ratio) == ("linear", 0.0)
    assert (defaults.schedule.warmup_ratio, defaults.task.lm_loss_weight, defaults.dropout) == (0.002, 0.5, 0.1)


@pytest.mark.parametrize("kind", ["classification", "similarity"])
def test_a_model_that_has_gone_wrong_is_not_exported(kind: TaskKind, model: Path, tmp_path: Path) -> None:
    asked = settings_for(kind, model, tmp_path, max_steps=4, lr=1e30)
    with pytest.raises(RunFailed, match=r"validation\.jsonl is nan, so no model is exported; fine-tune again"):
        finetune(asked)
    assert not (Path(asked.run) / "model").exists()
