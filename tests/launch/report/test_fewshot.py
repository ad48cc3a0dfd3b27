"""The few-shot section of the report: the results on disk as curves and as a table."""

from pathlib import Path
from typing import Any

import pytest

from malmoi.console import table_console
from malmoi.evaluation.fewshot.results import (
    Baseline,
    Score,
    ShotRun,
    TaskResult,
    describe_fit,
    read_results,
    score_text,
    write_result,
)
from malmoi.launch.cli import main
from malmoi.launch.commands.fewshot import results_table
from malmoi.launch.commands.report import write_report
from tests.launch.browser import find_browser, open_page
from tests.launch.report.run_folders import Outline, figures, make_run, words_of, write_corpus


def result(task: str, scores: dict[int, list[float]], model: str = "m", left_out: int = 0) -> TaskResult:
    """A result with a score a seed at each number of examples."""
    runs = tuple(
        ShotRun(shots, seed, (Score("acc", score, None), Score("macro_f1", score / 2, None)), 3 * shots, 4 * shots)
        for shots, each in scores.items()
        for seed, score in enumerate(each)
    )
    levels = (Baseline("acc", 0.5, 0.625), Baseline("macro_f1", 0.25, None))
    return TaskResult(task, model, 1234, left_out, None, levels, runs, "CC0", (("torch", "2"),))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.jsonl")


@pytest.fixture
def run(tmp_path: Path, corpus: Path) -> Path:
    """A run folder with results of two tasks."""
    make_run(tmp_path / "run", corpus)
    folder = tmp_path / "run" / "fewshot"
    folder.mkdir()
    write_result(folder, result("topic", {0: [0.25], 1: [0.5, 0.75], 5: [0.75, 1.0]}, left_out=7))
    write_result(folder, result("copa", {0: [0.5]}))
    return tmp_path / "run"


def page(run: Path, *fewshot: Path) -> str:
    return write_report((str(run),), None, tuple(map(str, fewshot))).file.read_text(encoding="utf-8")


def shot_charts(text: str) -> list[dict[str, Any]]:
    titles = [(figure["layout"].get("xaxis") or {}).get("title") for figure in figures(text)]
    return [f for f, title in zip(figures(text), titles, strict=True) if title == {"text": "examples in the prompt"}]


def test_results_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    made = result("topic", {0: [0.25], 1: [0.5, 0.75]})
    write_result(tmp_path, made)
    assert read_results(tmp_path) == (made,)
    assert read_results(tmp_path / "none") == ()


def test_results_in_the_run_folder_become_a_chart_a_task_and_a_row_a_score(run: Path) -> None:
    text = page(run)
    copa, topic = shot_charts(text)
    curve, chance, majority = topic["data"]
    assert (curve["x"], curve["y"]) == ([0, 1, 5], [0.25, 0.625, 0.875])
    assert curve["error_y"]["array"] == pytest.approx([0.0, 0.125, 0.125])
    assert (chance["y"], majority["y"]) == ([0.5, 0.5], [0.625, 0.625])
    assert chance["x"] == [0, 5]
    assert copa["data"][0]["error_y"]["visible"] is False
    seen = words_of(text)
    first = "topic acc 0.250 0.625 ± 0.125 0.875 ± 0.125 0.500 0.625 1,234"
    second = "topic macro_f1 0.125 0.312 ± 0.062 0.438 ± 0.062 0.250 - 1,234"
    assert first in seen and second in seen
    notes = describe_fit(read_results(run / "fewshot"))
    assert notes and all(note in seen for note in notes)


def test_several_models_are_a_curve_each(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other & <b>"
    other.mkdir()
    write_result(other, result("topic", {0: [0.125]}))
    text = page(run, other)
    topic = shot_charts(text)[1]
    assert [trace["name"] for trace in topic["data"]] == ["run", str(other), "chance", "majority"]
    assert {trace["meta"]["color"] for trace in topic["data"][:2]} == {0, 1}
    assert str(other) in Outline(text).text and "<b>" not in text


def test_a_score_of_any_size_fits_into_the_tables(run: Path) -> None:
    """The perplexity of a model that has diverged has 41 digits."""
    levels = (Baseline("perplexity", None, None),)
    runs = tuple(ShotRun(0, seed, (Score("perplexity", value, None),), 0, 0) for seed, value in enumerate((1e40, 3e40)))
    diverged = TaskResult("lambada", "m", 10, 0, None, levels, runs, "CC0", (("torch", "2"),))
    write_result(run / "fewshot", diverged)
    assert "lambada perplexity 2.0e+40 ± 1.0e+40" in words_of(page(run))
    console = table_console()
    with console.capture() as shown:
        console.print(results_table([diverged]))
    assert "2.0e+40 ±1.0e+40" in shown.get()
    assert score_text(123_456.78) == "123,456.8"


def test_a_report_without_results_has_no_such_section(tmp_path: Path, corpus: Path) -> None:
    make_run(tmp_path / "run", corpus)
    assert "Few-shot" not in Outline(page(tmp_path / "run")).text


def test_a_folder_without_results_is_exit_code_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--fewshot", str(tmp_path)]) == 2
    assert "no results of `malmoi fewshot` here" in capsys.readouterr().err
    (run / "fewshot" / "topic.json").write_text('{"task": 1}')
    assert main(["report", str(run)]) == 2
    assert "topic.json: no valid result of `malmoi fewshot`" in capsys.readouterr().err


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install -y chromium")
def test_a_browser_draws_the_few_shot_charts(run: Path, tmp_path: Path) -> None:
    browser = find_browser()
    assert browser is not None
    page(run)
    for name, width, dark in (("light", 1400, False), ("dark", 360, True)):
        seen, asked = open_page(browser, run / "report.html", tmp_path / name, width=width, dark=dark)
        assert seen.charts == seen.drawn
        assert seen.overflow <= 0 and not seen.attacked and asked == []
