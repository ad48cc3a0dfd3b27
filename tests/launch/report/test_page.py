"""The report: one file that shows a run as it is, whatever text is in it, and fetches nothing."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from malmoi.launch.cli import main
from malmoi.launch.commands.report import write_report
from malmoi.launch.report.charts import MAX_POINTS
from malmoi.train.metrics.records import EventMetrics, append_metrics, as_logged, read_metrics
from malmoi.train.metrics.sample_log import EvalSample, write_eval_sample
from malmoi.train.run_dir import record_settings
from tests.launch.browser import find_browser, open_page
from tests.launch.report.run_folders import (
    Outline,
    figures,
    finish,
    make_run,
    page_of,
    step_record,
    words_of,
    write_corpus,
)

HOSTILE = (
    "말모이</script><script>window.attacked = 1</script><b>굵게</b> & <img src='http://203.0.113.7/x.png'> "
    "${title} {{ title }}"
)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus & <i>.jsonl")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """A finished run with a hostile sample, and its report."""
    folder = tmp_path_factory.mktemp("runs") / "<u>run"
    finish(make_run(folder, corpus_file), [HOSTILE, "말모이는 사전이다.\n둘째 줄"])
    write_report((str(folder),))
    return folder


def test_the_page_is_one_file_that_names_no_outside_address(finished: Path) -> None:
    page = page_of(finished)
    outline = Outline(page)
    assert outline.addresses == ["data:,"]
    assert "default-src 'none'" in page
    assert len(page.encode()) < 3_000_000
    assert not list(finished.glob(".report*"))


def test_text_is_never_markup(finished: Path) -> None:
    outline = Outline(page_of(finished))
    assert HOSTILE in outline.text
    assert "<u>run" in outline.text
    assert "corpus & <i>.jsonl" in outline.text
    assert outline.elements.count("b") == 2, "the prompts, and nothing of the sample"
    assert not {"img", "u", "i"} & set(outline.elements)


def test_the_figures_are_the_runs_own(finished: Path) -> None:
    page = page_of(finished)
    text = Outline(page).words
    counts = read_manifest_counts(finished)
    for figure in (f"{counts['documents']:,}", f"{counts['tokens']:,}", f"{counts['bytes']:,}", "1.1875 bits per byte"):
        assert figure in text
    assert f"{counts['bytes'] / counts['tokens']:.2f}" in text
    assert "finished" in text and "not finished" not in text
    loss = figures(page)[0]["data"]
    assert loss[0]["y"] == pytest.approx([8.0 / step for step in range(1, 11)], rel=1e-5)
    assert loss[0]["meta"]["x"]["time"] == pytest.approx([step * 32 / 64 / 60 for step in range(1, 11)], rel=1e-5)
    assert (loss[1]["x"], loss[1]["y"]) == ([160.0, 320.0], [2.5, 2.5])
    assert "global_batch_size: 2" in text and "torch" in text
    assert "malmoi train --config" in text


def test_every_figure_is_one_that_plotly_accepts(finished: Path) -> None:
    for figure in figures(page_of(finished)):
        go.Figure(figure["data"], figure["layout"])


def read_manifest_counts(run: Path) -> dict[str, int]:
    manifest = json.loads(next(run.glob("shards/*/manifest.json")).read_text())
    counts: dict[str, int] = manifest["train"]["counts"]
    return counts


def test_a_run_under_way_says_how_far_it_is(tmp_path: Path, corpus_file: Path) -> None:
    make_run(tmp_path / "run", corpus_file, steps=5, planned=20)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "tokens": 192, "lo')
    write_report((str(tmp_path / "run"),))
    text = Outline(page_of(tmp_path / "run")).text
    assert "not finished: step 5 of 20 (25%)" in text
    assert "No samples: this run is not finished" in text
    assert "could not be read" not in text


def test_samples_of_a_shorter_run_are_marked_as_such(tmp_path: Path, corpus_file: Path) -> None:
    settings = make_run(tmp_path / "run", corpus_file, steps=10, planned=10)
    finish(settings, ["말모이 옛글"])
    longer = replace(settings, train=replace(settings.train, max_steps=40))
    record_settings(tmp_path / "run", longer)
    write_report((str(tmp_path / "run"),))
    assert "not finished: step 10 of 40" in Outline(page_of(tmp_path / "run")).text
    append_metrics(tmp_path / "run", step_record(11))
    write_report((str(tmp_path / "run"),))
    text = Outline(page_of(tmp_path / "run")).text
    assert "not finished: step 11 of 40" in text
    assert "from its model at step 10" in text and "옛글" in text


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, corpus_file: Path) -> None:
    make_run(tmp_path / "run", corpus_file, steps=2)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 3, "to\n')
    append_metrics(tmp_path / "run", step_record(4))
    assert read_metrics(tmp_path / "run").unreadable == (3,)
    write_report((str(tmp_path / "run"),))
    text = Outline(page_of(tmp_path / "run")).text
    assert "1 lines of metrics.jsonl could not be read, the first is line 3" in text
    assert "step 4 of 10" in text


def test_a_loss_that_is_not_finite_is_a_gap_and_reported(tmp_path: Path, corpus_file: Path) -> None:
    make_run(tmp_path / "run", corpus_file, steps=3)
    append_metrics(tmp_path / "run", step_record(4, loss=float("nan"), skipped=1, grad_norm=float("inf")))
    write_report((str(tmp_path / "run"),))
    page = page_of(tmp_path / "run")
    loss, norm = figures(page)[0]["data"], figures(page)[2]["data"][0]
    assert loss[0]["y"][-1] is None and norm["y"][-1] is None
    text = Outline(page).text
    assert "At 1 logged steps the loss was not finite" in text
    assert "4 steps, 1 skipped" in text and "Skipped steps" in text


def test_a_long_run_keeps_its_spikes_and_a_small_page(tmp_path: Path, corpus_file: Path) -> None:
    make_run(tmp_path / "run", corpus_file, steps=0)
    losses = 5 - np.linspace(0, 2, 20_000)
    losses[11_234] = 11.0
    losses[3] = np.nan
    with (tmp_path / "run" / "metrics.jsonl").open("w") as metrics:
        for step, loss in enumerate(losses, 1):
            metrics.write(json.dumps(as_logged(step_record(step, float(loss)))) + "\n")
    write_report((str(tmp_path / "run"),))
    page = page_of(tmp_path / "run")
    drawn = figures(page)[0]["data"][0]
    assert len(drawn["y"]) <= MAX_POINTS
    highest = int(np.nanargmax(np.array(drawn["y"], dtype=np.float64)))
    assert drawn["y"][highest] == 11.0 and drawn["meta"]["x"]["steps"][highest] == 11_235
    mean = figures(page)[0]["data"][1]
    assert len(mean["y"]) == 400 and mean["y"][0] == pytest.approx(np.nanmean(losses[:50]), rel=1e-5)
    assert mean["meta"]["x"]["steps"][0] == pytest.approx(25.5)
    assert len(page.encode()) < 3_500_000


def test_resumes_and_rollbacks_are_marked_where_they_happened(tmp_path: Path, corpus_file: Path) -> None:
    make_run(tmp_path / "run", corpus_file, steps=4)
    append_metrics(tmp_path / "run", EventMetrics(4, 128, "resume", "resumed from step 4 (<b>run</b>)"))
    for step in (5, 6):
        append_metrics(tmp_path / "run", step_record(step))
    append_metrics(tmp_path / "run", EventMetrics(4, 192, "rollback", "step 6: a loss of 9; back to step 4"))
    write_report((str(tmp_path / "run"),))
    page = page_of(tmp_path / "run")
    # 64 tokens a second: 2 seconds, and 3.
    lines = [
        {"x": {"tokens": 128.0, "time": pytest.approx(2 / 60, rel=1e-5), "steps": 4.0}, "dash": "dot"},
        {"x": {"tokens": 192.0, "time": pytest.approx(3 / 60, rel=1e-5), "steps": 4.0}, "dash": "dash"},
    ]
    curves = [figure for figure in figures(page) if figure["data"][0]["meta"].get("x")]
    assert all(figure["events"] == lines for figure in curves) and len(curves) >= 7
    marks = {trace["name"]: trace for trace in figures(page)[0]["data"] if trace["name"] in ("resume", "rollback")}
    assert (marks["resume"]["x"], marks["resume"]["y"]) == ([128.0], [2.0])
    assert marks["resume"]["text"] == ["resumed from step 4 (&lt;b>run&lt;/b>)"]
    assert marks["rollback"]["x"] == [192.0] and marks["rollback"]["marker"]["symbol"] == "triangle-down"
    text = Outline(page).words
    assert "6 steps, none skipped, 1 resume, 1 rollback" in text
    assert "2 resumes and rollbacks" in text and "resumed from step 4 (<b>run</b>)" in text
    assert "b" not in Outline(page).elements


def test_samples_of_evaluations_are_shown_in_order_spread_over_the_run(tmp_path: Path, corpus_file: Path) -> None:
    settings = make_run(tmp_path / "run", corpus_file)
    for step in range(1, 31):
        write_eval_sample(tmp_path / "run", EvalSample(step, step * 32, "말모이", f"말모이 <i>{step}</i>."))
    finish(settings, ["말모이는"])
    write_report((str(tmp_path / "run"),))
    outline = Outline(page_of(tmp_path / "run"))
    shown = [int(number) for number in re.findall(r"말모이 <i>(\d+)</i>\.", outline.text)]
    assert shown == sorted(shown) and len(shown) == 10 and (shown[0], shown[-1]) == (1, 30)
    assert "10 of 30; all are in samples.jsonl" in outline.text
    assert "step 1, 32 tokens" in outline.text
    assert outline.elements.count("b") == 11 and "i" not in outline.elements


def test_the_shares_of_time_are_over_the_complete_run(tmp_path: Path, corpus_file: Path) -> None:
    make_run(tmp_path / "run", corpus_file, steps=0)
    # A second of training each: the first interval alone, the second in an interval of two seconds.
    append_metrics(tmp_path / "run", step_record(2, data_wait_frac=0.5))
    append_metrics(tmp_path / "run", step_record(4, data_wait_frac=0.0, checkpoint_frac=0.2, eval_frac=0.3))
    write_report((str(tmp_path / "run"),))
    page = page_of(tmp_path / "run")
    caption = "of the complete run 17% waiting for data, 13% for checkpoints, 20% for evaluations"
    assert caption in Outline(page).words
    [shares] = [figure["data"] for figure in figures(page) if figure["data"][0]["name"] == "data"]
    assert {trace["name"]: trace["y"] for trace in shares} == {
        "data": [50.0, 0.0],
        "checkpoint": [0.0, 20.0],
        "evaluation": [0.0, 30.0],
    }


def test_lengths_from_1024_tokens_on_are_in_binary_units(finished: Path) -> None:
    [axis] = [
        axis for figure in figures(page_of(finished)) if "ticktext" in (axis := figure["layout"].get("xaxis") or {})
    ]
    assert axis["ticktext"][3:8] == ["64", "256", "1Ki", "4Ki", "16Ki"]


def test_runs_that_were_validated_on_different_texts_are_not_compared_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, other = write_corpus(tmp_path / "corpus.jsonl"), write_corpus(tmp_path / "other.jsonl")
    # Of the same content, so the same text by another tokenizer.
    make_run(tmp_path / "one", corpus)
    make_run(tmp_path / "same", other, vocab_size=400)
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "same")]) == 0
    assert capsys.readouterr().err == ""
    assert "do not compare" not in page_of(tmp_path / "one")
    assert "Lower is better; comparable between tokenizers." in page_of(tmp_path / "one")
    with other.open("a", encoding="utf-8") as file:
        file.write('{"text": "한 줄이 더 있다."}\n')
    make_run(tmp_path / "longer", other)
    runs = [str(tmp_path / name) for name in ("one", "same", "longer")]
    assert main(["report", *runs]) == 0
    said = capsys.readouterr().err
    models = " ".join(f"{run}/model" for run in runs)
    note = (
        "The runs are validated on different texts (one, same; longer), so their bits per byte do not compare; to "
        f"compare them on one text: malmoi evaluate --model {models} --data TEXT"
    )
    assert said == f"malmoi report: {note}\n"
    assert note in Outline(page_of(tmp_path / "one")).words
    assert "Lower is better; on one text comparable between tokenizers." in page_of(tmp_path / "one")
    for file in (tmp_path / "longer").glob("shards/*/manifest.json"):
        file.unlink()
    assert main(["report", runs[0], runs[2]]) == 0
    assert "The shards of longer are not there" in capsys.readouterr().err


def test_the_vocabulary_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    """The settings ask for more tokens than the text has merges for, or are those of a tokenizer that was given."""
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    make_run(tmp_path / "trained", corpus, vocab_size=32_000)
    tokenizer = tmp_path / "trained" / "tokenizer"
    size = len(json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8")))
    make_run(tmp_path / "small", corpus, vocab_size=300)
    make_run(tmp_path / "given", corpus, vocab_size=32_000, tokenizer=str(tmp_path / "small" / "tokenizer"))
    out = tmp_path / "report.html"
    write_report((str(tmp_path / "trained"), str(tmp_path / "given")), out)
    words = words_of(out.read_text(encoding="utf-8"))
    assert size < 1000
    assert f"tokenizer.vocab_size {size} 300" in words
    assert f"vocabulary {size:,}" in words and "vocabulary 300" in words
    assert "tokenizer.sample_bytes 100000000 -" in words


def test_several_runs_are_shown_side_by_side_with_what_differs(tmp_path: Path, corpus_file: Path) -> None:
    # Labels are paths here, and so can hold what would end a script element.
    first, second = tmp_path / "first<" / "script><b>" / "run", tmp_path / "second" / "run"
    for folder, planned in ((first, 10), (second, 30)):
        make_run(folder, corpus_file, planned=planned)
    out = tmp_path / "both.html"
    assert main(["report", str(first), str(second), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    text = Outline(page).text
    assert str(first) in text and str(second) in text, "names alone are the same"
    assert "b" not in Outline(page).elements
    assert re.search(r"What differs.*train\.max_steps\s*10\s*30", text, re.DOTALL)
    assert "train.global_batch_size" not in text
    assert len({trace["name"] for trace in figures(page)[0]["data"]}) == 4
    assert not (first / "report.html").exists()


def test_a_run_whose_shards_are_gone_is_shown_without_them(tmp_path: Path, corpus_file: Path) -> None:
    make_run(tmp_path / "run", corpus_file)
    next((tmp_path / "run").glob("shards/*/train-00000.bin")).unlink()
    write_report((str(tmp_path / "run"),))
    text = Outline(page_of(tmp_path / "run")).text
    assert "The shards cannot be shown" in text and "train-00000.bin: missing" in text
    assert "not finished: step 10 of 10" in text


def no_folder(folder: Path, corpus: Path) -> None:
    pass


def empty_folder(folder: Path, corpus: Path) -> None:
    folder.mkdir()


def folder_without_metrics(folder: Path, corpus: Path) -> None:
    make_run(folder, corpus, steps=0)


def folder_with_half_a_line(folder: Path, corpus: Path) -> None:
    make_run(folder, corpus, steps=0)
    (folder / "metrics.jsonl").write_text('{"step": 1,')


@pytest.mark.parametrize(
    ("make", "place", "remedy"),
    [
        (no_folder, "run: no such folder", "name the run folder"),
        (empty_folder, "run: no config.yaml", "name one that `malmoi train` made"),
        (folder_without_metrics, "metrics.jsonl: no step is logged yet", "until step 10"),
        (folder_with_half_a_line, "metrics.jsonl: no step is logged yet", "until step 10"),
    ],
)
def test_a_folder_without_a_run_is_one_line_and_exit_code_2(
    make: Any, place: str, remedy: str, tmp_path: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run", corpus_file)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert place in printed.err and remedy in printed.err
    assert not list(tmp_path.rglob("*.html"))


def test_a_report_that_cannot_be_written_is_exit_code_2(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(finished), "--out", "/dev/null/report.html"]) == 2
    assert "/dev/null/report.html: cannot be written" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "RUN missing" in capsys.readouterr().err


def test_the_command_prints_the_path_and_does_not_wait_for_torch(finished: Path) -> None:
    code = "import sys; from malmoi.launch.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "report", str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines() == [str(finished / "report.html"), "0 False"]


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install -y chromium")
def test_a_browser_draws_every_chart_wide_and_narrow_light_and_dark(finished: Path, tmp_path: Path) -> None:
    browser = find_browser()
    assert browser is not None
    light, asked = open_page(browser, finished / "report.html", tmp_path / "light", width=1400, dark=False)
    dark, asked_too = open_page(browser, finished / "report.html", tmp_path / "dark", width=360, dark=True)
    for seen, width in ((light, 1400), (dark, 360)):
        assert seen.charts == seen.drawn == 9
        assert seen.width == width and seen.overflow <= 0
        assert seen.axis == "steps", "the first chart follows the choice of axis"
        assert not seen.attacked and seen.bold == 2
    assert luminance(light.page) > 200 > 120 > max(luminance(light.ticks), luminance(light.legend))
    assert luminance(dark.page) < 60 < 120 < min(luminance(dark.ticks), luminance(dark.legend))
    assert asked == asked_too == []


def luminance(color: str) -> float:
    red, green, blue = map(float, re.findall(r"[\d.]+", color)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
