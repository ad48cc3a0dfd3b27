"""The report of fine-tuning: losses, scores of each evaluation, and those of the exported model."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from malmoi.configs.finetune import FinetuneSettings, FinetuneTrainSettings, TaskSettings
from malmoi.configs.parser import settings_as_yaml
from malmoi.evaluation.calibration import Calibration, CalibrationBin
from malmoi.launch.cli import main
from malmoi.launch.commands.report import write_report
from malmoi.train.finetune_result import (
    BaselineRecord,
    ClassRecord,
    FileScores,
    FinetuneResult,
    PredictionRecord,
    ScoreRecord,
    write_finetuning,
    write_predictions,
)
from malmoi.train.metrics.records import TaskValMetrics, append_metrics
from tests.launch.browser import find_browser, open_page
from tests.launch.report.run_folders import Outline, figures, make_run, step_record, words_of, write_corpus


def tuned(folder: Path, finished: bool = True, init_from: str = "/nowhere") -> Path:
    """A run folder as `malmoi finetune` leaves it, without its model."""
    folder.mkdir(parents=True)
    settings = FinetuneSettings(
        run=str(folder),
        init_from=init_from,
        task=TaskSettings(train="train <b>.jsonl", validation="dev.jsonl", test="test.jsonl", fields=("question",)),
        train=FinetuneTrainSettings(max_steps=8, global_batch_size=4),
    )
    (folder / "config.yaml").write_text(settings_as_yaml(settings))
    (folder / "environment.json").write_text('{"torch": "2", "ranks": 2}')
    for step in range(1, 9):
        append_metrics(folder, step_record(step, loss=2.0 / step))
        if step % 4 == 0:
            scores = {"accuracy": 0.5 + step / 100, "macro_f1": 0.25}
            append_metrics(folder, TaskValMetrics(step, step * 32, 0.75 - step / 100, scores))
    if finished:
        score = ScoreRecord("accuracy", 0.8125, 0.7, 0.9)
        constant = ScoreRecord("accuracy", 0.53125, None, None)
        parts = tuple(
            FileScores(
                part,
                f"{part}.jsonl",
                16,
                0.5,
                (score, ScoreRecord("matthews", 0.0, None, None)),
                (constant,),
                (ClassRecord("<u>좋다", 0.75, 0.6, 0.6667, 10), ClassRecord("나쁘다", 0.5, 0.6667, 0.5714, 6)),
                ((6, 4), (2, 4)),
                (
                    BaselineRecord("words", (ScoreRecord("accuracy", 0.6875, 0.5, 0.8),), "learned from 8 of 64 rows"),
                    BaselineRecord("character n-grams", (ScoreRecord("accuracy", 0.75, 0.5, 0.8),)),
                ),
                Calibration(0.15, (CalibrationBin(0.0, 0.5, 0, 0.0, 0.0), CalibrationBin(0.5, 1.0, 16, 0.9, 0.75))),
            )
            for part in ("validation", "test")
        )
        plain = json.loads(json.dumps(asdict(settings)))
        write_finetuning(folder, FinetuneResult(plain, 8, 4, 64, ("<u>좋다", "나쁘다"), parts))
    return folder


def test_a_fine_tuning_shows_its_losses_scores_and_how_to_repeat_it(tmp_path: Path) -> None:
    run = tuned(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    text = words_of(page)
    for expected in (
        "State finished",
        "0.6700",  # the lowest validation loss
        "Score test accuracy 0.8125 95% interval 0.7000 to 0.9000",
        "test accuracy 0.8125 0.7000 to 0.9000 0.5312 0.6875 0.7500 16",
        "test matthews 0.0000 - - - - 16",
        "2 classes: <u>좋다, 나쁘다",
        "test file by class Class Precision Recall F1 Examples <u>좋다 0.7500 0.6000 0.6667 10 나쁘다 0.5000",
        "Confusion matrix Label / answer <u>좋다 나쁘다 <u>좋다 6 4 나쁘다 2 4",
        "step 4 of 8",
        "train <b>.jsonl 64",
        "accelerate launch ... -m malmoi.launch finetune",
        "its folder is gone",
    ):
        assert expected in text, expected
    assert f"malmoi finetune --config {run / 'config.yaml'}" in text
    assert not {"u", "b"} & set(Outline(page).elements)
    loss, scores = figures(page)[0]["data"], figures(page)[1]["data"]
    assert [trace["name"] for trace in loss] == ["training", "validation"]
    assert loss[1]["y"] == pytest.approx([0.71, 0.67])
    assert {trace["name"]: trace["y"] for trace in scores} == {"accuracy": [0.54, 0.58], "macro_f1": [0.25, 0.25]}


def test_the_model_it_began_from_is_shown_by_its_shape(tmp_path: Path) -> None:
    shape = {"n_layer": 3, "n_head": 2, "n_embd": 64, "n_positions": 1024}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **shape}))
    page = write_report((str(tuned(tmp_path / "run", init_from=str(tmp_path))),)).file.read_text(encoding="utf-8")
    assert f"Model {tmp_path} 3 layers, 2 heads, hidden size 64, context 1,024" in words_of(page)


def test_one_under_way_says_so(tmp_path: Path) -> None:
    run = tuned(tmp_path / "run", finished=False)
    text = words_of(write_report((str(run),)).file.read_text(encoding="utf-8"))
    assert "not finished: step 8 of 8" in text
    assert "no scores yet" in text


def test_several_are_shown_side_by_side(tmp_path: Path) -> None:
    runs = [tuned(tmp_path / name) for name in ("first", "second")]
    page = write_report(tuple(map(str, runs)), tmp_path / "both.html").file.read_text(encoding="utf-8")
    text = words_of(page)
    assert "test accuracy first 0.8125" in text and "test accuracy second 0.8125" in text
    assert "The runs have the same settings." in text
    [accuracy] = [figure for figure in figures(page) if figure["layout"]["yaxis"]["title"]["text"] == "accuracy"]
    assert [trace["name"] for trace in accuracy["data"]] == ["first", "second"]


def test_beside_a_finished_run_one_under_way_has_a_cell_in_every_column(tmp_path: Path) -> None:
    runs = [tuned(tmp_path / "first"), tuned(tmp_path / "second", finished=False)]
    page = write_report(tuple(map(str, runs)), tmp_path / "both.html").file.read_text(encoding="utf-8")
    head, first, second = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)[:3]
    assert head.count("<th") == first.count("<t") == second.count("<t") == 8


def test_a_fine_tuning_and_a_pre_training_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    make_run(tmp_path / "plain", corpus)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "plain"), str(tuned(tmp_path / "tuned"))]) == 2
    assert "tuned is a fine-tuning run and" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_a_broken_result_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tuned(tmp_path / "run")
    (run / "finetune.json").write_text('{"files": 3}')
    assert main(["report", str(run)]) == 2
    assert "finetune.json: damaged (" in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install -y chromium")
def test_a_browser_draws_every_chart_of_a_fine_tuning(tmp_path: Path) -> None:
    browser = find_browser()
    assert browser is not None
    run = tuned(tmp_path / "run")
    text = "<script>window.attacked = 1</script>" + "띄어쓰기없는긴글" * 40
    answers = [PredictionRecord(f"f:{n}", (text,), "나쁘다", "<u>좋다", (0.9, 0.1)) for n in range(16)]
    write_predictions(run, "test", answers)
    write_report((str(run),))
    for name, width, dark in (("narrow", 400, True), ("wide", 1400, False)):
        seen, asked = open_page(browser, run / "report.html", tmp_path / name, width=width, dark=dark)
        assert seen.charts == seen.drawn == 10
        assert seen.overflow <= 0
        assert not seen.attacked
        assert asked == []
