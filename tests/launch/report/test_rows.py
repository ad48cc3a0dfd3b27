"""The rows of a report: the worst answers first, the same ones at random each time, as text and never as markup."""

import json
from pathlib import Path

import pytest

from malmoi.errors import UserError
from malmoi.evaluation.calibration import Calibration, CalibrationBin
from malmoi.evaluation.fewshot.results import Sample, read_samples, write_result, write_samples
from malmoi.launch.commands.report import write_report
from malmoi.launch.report.reliability import reliability_chart
from malmoi.launch.report.rows import MAX_CHARACTERS, SHOWN, cut_text, fewshot_rows, prediction_rows
from malmoi.launch.report.runs import FinetuneRun, read_run
from malmoi.train.finetune_result import PredictionRecord, predictions_file, read_predictions, write_predictions
from tests.launch.report.run_folders import Outline, figures, make_run, words_of, write_corpus
from tests.launch.report.test_fewshot import result
from tests.launch.report.test_finetune_page import tuned

GOOD, BAD = "<u>좋다", "나쁘다"
ATTACK = "<script>window.attacked = 1</script><b>글"


def answer(number: int, probability: float, right: bool, text: str = "", label: str = GOOD) -> PredictionRecord:
    """Return the answer to a row that the model gives `probability`."""
    other = {GOOD: BAD, BAD: GOOD}
    predicted = label if right else other[label]
    outputs = (probability, 1 - probability) if predicted == GOOD else (1 - probability, probability)
    return PredictionRecord(f"test.jsonl:{number + 1}", (text or f"글 {number}",), label, predicted, outputs)


def tuned_run(folder: Path, records: list[PredictionRecord]) -> FinetuneRun:
    """Return a run whose test file of 16 rows has these answers."""
    tuned(folder)
    write_predictions(folder, "test", records)
    run = read_run(folder, "run")
    assert isinstance(run, FinetuneRun)
    return run


def test_the_worst_are_the_wrong_answers_of_highest_probability(tmp_path: Path) -> None:
    records = [answer(number, 0.55 + number / 50, right=number % 3 == 0) for number in range(16)]
    records[4] = answer(4, 0.9, right=False, label=BAD)
    [shown] = prediction_rows(tuned_run(tmp_path / "run", records))
    wrong = [record for record in records if record.predicted != record.label]
    expected = sorted(wrong, key=lambda record: -max(record.outputs))[:SHOWN]
    assert [row.place for row in shown.worst] == [record.place for record in expected]
    first = shown.worst[0]
    assert (first.label, first.answer, first.is_wrong, first.texts) == (BAD, GOOD, True, ("글 4",))
    assert first.measure == "probability 0.900, of the label 0.100"
    assert (shown.title, shown.total) == ("test file", 16)


def test_the_rows_at_random_are_the_same_each_time_and_of_all(tmp_path: Path) -> None:
    records = [answer(number, 0.9, right=True) for number in range(16)]
    run = tuned_run(tmp_path / "run", records)
    [first], [second] = prediction_rows(run), prediction_rows(run)
    assert first.sample == second.sample and len(first.sample) == SHOWN
    places = [row.place for row in first.sample]
    assert places == [record.place for record in records if record.place in places], "in the order of the file"
    assert places != [record.place for record in records[:SHOWN]]
    assert first.worst == () and not any(row.is_wrong for row in first.sample)


def test_scores_are_worst_where_they_are_farthest_off_and_choices_by_their_softmax(tmp_path: Path) -> None:
    from dataclasses import replace

    numbers = [PredictionRecord(f"f:{n}", ("가", "나"), 2.5, 2.5 + n / 2, (2.5 + n / 2,)) for n in range(4)]
    run = tuned_run(tmp_path / "run", numbers)
    similarity = replace(run, settings=replace(run.settings, task=replace(run.settings.task, kind="similarity")))
    [shown] = prediction_rows(similarity)
    assert [(row.place, row.measure) for row in shown.worst[:2]] == [("f:3", "off by 1.5"), ("f:2", "off by 1")]
    assert shown.worst[0].texts == ("가", "나")
    choices = [PredictionRecord("f:1", ("문맥", "하나", "둘"), 0, 1, (2.0, 2.0 + 1.0986122886681098))]
    write_predictions(run.folder, "test", choices)
    choice = replace(run, settings=replace(run.settings, task=replace(run.settings.task, kind="multiple_choice")))
    assert run.result is not None
    [shown] = prediction_rows(replace(choice, result=replace(run.result, classes=("0", "1"))))
    assert shown.worst[0].measure == "probability 0.750, of the label 0.250"


def test_the_page_shows_texts_labels_answers_and_probabilities_and_no_markup_of_theirs(tmp_path: Path) -> None:
    long = "아주 긴 글이다. " * 500
    run = tuned_run(
        tmp_path / "run", [answer(0, 0.97, False, ATTACK), answer(1, 0.8, False, long), answer(2, 0.6, True)]
    )
    page = write_report((str(run.folder),)).file.read_text(encoding="utf-8")
    text = words_of(page)
    assert "The worst 2 of 16 Wrong answers, the most confident first." in text
    assert f"{ATTACK} label {GOOD} answer {BAD} probability 0.970, of the label 0.030 · test.jsonl:1" in text
    assert "3 of 16 at random" in text
    assert len(page) - len(page.replace("아주 긴 글이다.", "")) < 2 * MAX_CHARACTERS + 100
    assert not {"u", "b"} & set(Outline(page).elements)
    assert ATTACK not in page


def test_a_damaged_file_of_answers_is_a_note_and_not_the_end(tmp_path: Path) -> None:
    run = tuned_run(tmp_path / "run", [answer(0, 0.9, True)])
    file = predictions_file(run.folder, "test")
    file.write_text(file.read_text(encoding="utf-8") + '{"place": 1', encoding="utf-8")
    with pytest.raises(UserError, match=r"predictions_test\.jsonl: damaged .*; fine-tune again"):
        list(read_predictions(file))
    text = words_of(write_report((str(run.folder),)).file.read_text(encoding="utf-8"))
    assert "predictions_test.jsonl: damaged (" in text


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert cut_text("가" * MAX_CHARACTERS) == "가" * MAX_CHARACTERS
    cut = cut_text("가" * 1000 + "나" * 1000)
    assert cut.startswith("가가") and cut.endswith("나나") and "[…1,600 characters…]" in cut


def choice_sample(number: int, margin: float, prompt: str = "") -> Sample:
    """Return a sample whose answer is `margin` nats above the right one; at 0 it is the right one."""
    right, other = "좋다", "나쁘다"
    likelihoods = (-3.0, -3.0 + margin if margin else -4.0)
    text = prompt or f"물음 {number}"
    chosen = other if margin else right
    return Sample(5, 0, number, text, (right,), chosen, (right, other), likelihoods, {"acc": float(not margin)})


def test_few_shot_samples_are_worst_by_their_margin_at_the_most_examples(tmp_path: Path) -> None:
    made = result("topic", {0: [0.25], 5: [0.5, 0.75]})
    other = Sample(0, 0, 9, "다른 예", ("a",), "b", ("a", "b"), (-9.0, -1.0), {})
    samples = [other, *(choice_sample(number, [0, 0.5, 2.0, 1.0][number % 4]) for number in range(12))]
    write_samples(tmp_path, "topic", samples)
    assert tuple(read_samples(tmp_path, "topic")) == tuple(samples)
    shown = fewshot_rows(tmp_path, made)
    assert shown is not None and shown.title == "topic, 5 examples, seed 0" and shown.total == 12
    assert [row.place for row in shown.worst] == [f"document {n}" for n in (2, 6, 10, 3, 7, 11, 1, 5, 9)]
    assert shown.worst[0].measure == "2.00 nats above the right one"
    assert (shown.worst[0].label, shown.worst[0].answer) == ("좋다", "나쁘다")
    assert len(shown.sample) == SHOWN and fewshot_rows(tmp_path, made) == shown
    assert fewshot_rows(tmp_path, result("copa", {0: [0.5]})) is None


def test_written_answers_and_targets_are_worst_by_score_and_by_likelihood(tmp_path: Path) -> None:
    made = result("qa", {5: [0.5]})
    long = "문단 " * 400 + "물음:"
    written = [Sample(5, 0, n, long, ("서울",), f"답 {n}", (), (), {"f1": n / 4}) for n in range(5)]
    write_samples(tmp_path, "qa", written)
    shown = fewshot_rows(tmp_path, made)
    assert shown is not None and [row.place for row in shown.worst] == [f"document {n}" for n in range(4)]
    assert shown.worst[0].measure == "f1 0" and shown.worst[0].texts[0].endswith("물음:")
    assert len(shown.worst[0].texts[0]) < MAX_CHARACTERS + 50
    write_samples(tmp_path, "qa", [Sample(5, 0, n, "글", ("끝",), None, ("끝",), (-float(n),), {}) for n in range(3)])
    shown = fewshot_rows(tmp_path, made)
    assert shown is not None and [row.measure for row in shown.worst] == [f"log-likelihood {-n}.00" for n in (2, 1)] + [
        "log-likelihood -0.00"
    ]


def test_the_report_of_a_run_shows_its_few_shot_samples(tmp_path: Path) -> None:
    make_run(tmp_path / "run", write_corpus(tmp_path / "corpus.jsonl"))
    folder = tmp_path / "run" / "fewshot"
    folder.mkdir()
    write_result(folder, result("topic", {5: [0.5]}))
    write_samples(folder, "topic", [choice_sample(0, 1.5, ATTACK), choice_sample(1, 0)])
    page = write_report((str(tmp_path / "run"),)).file.read_text(encoding="utf-8")
    assert f"{ATTACK} label 좋다 answer 나쁘다 1.50 nats above the right one · document 0" in words_of(page)
    assert ATTACK not in page


def test_the_reliability_diagram_has_a_bar_a_bin_that_holds_examples() -> None:
    bins = (CalibrationBin(0.0, 0.5, 0, 0.0, 0.0), CalibrationBin(0.5, 1.0, 24, 0.9, 0.75))
    chart = reliability_chart("validation", Calibration(0.15, bins))
    bars, diagonal = chart.figure["data"]
    assert (bars["x"], bars["y"], bars["type"]) == ([0.75], [0.75], "bar")
    assert bars["hovertext"] == ["0.5 to 1.0: 75.0% of 24 right, mean probability 0.900"]
    assert (diagonal["x"], diagonal["y"]) == ([0, 1], [0, 1])
    assert "Expected calibration error 0.1500" in chart.caption
    assert json.loads(json.dumps(chart.figure)) == chart.figure


def test_a_page_has_a_reliability_diagram_and_the_baselines_of_each_file(tmp_path: Path) -> None:
    page = write_report((str(tuned(tmp_path / "run")),)).file.read_text(encoding="utf-8")
    text = words_of(page)
    assert "Majority Words Character n-grams Examples" in text
    assert "test accuracy 0.8125 0.7000 to 0.9000 0.5312 0.6875 0.7500 16" in text
    assert "test matthews 0.0000 - - - - 16" in text
    assert "test file, words: learned from 8 of 64 rows." in text
    assert "test file: calibration as a table Probability Examples Mean probability Fraction right" in text
    assert "0.5 to 1.0 16 0.9000 0.7500" in text
    assert sum(figure["data"][0].get("type") == "bar" for figure in figures(page)) == 2
