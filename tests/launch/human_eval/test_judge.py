"""`malmoi judge`: raters in a real browser, a server that is killed meanwhile, and the results."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from malmoi.evaluation.human_eval.items import write_test
from malmoi.evaluation.human_eval.ratings import RATINGS_FILE, NextItem, Rating, Ratings, items_in_order
from malmoi.launch.cli import main
from malmoi.launch.human_eval.words import WORDS
from tests.evaluation.human_eval.judging import ANSWERS, AUTHORS, MODEL, known_ratings, small_test
from tests.launch.browser import find_browser
from tests.launching import ROOT, environment, run_malmoi
from tests.time_limits import seconds

pytest.importorskip("gradio", reason="the extra `judge` is not installed")
pytest.importorskip("sklearn", reason="the extra `judge` is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install -y chromium")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the small test."""
    write_test(tmp_path, small_test())
    return tmp_path


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Server:
    """`malmoi judge serve` in a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self._log = (folder / "log").open("a")
        words = ["judge", "serve", str(folder), "--port", str(port)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from malmoi.launch.cli import main; sys.exit(main())", *words],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert f"10 texts at http://127.0.0.1:{port}" in said, (folder / "log").read_text()

    def end(self, how: signal.Signals) -> None:
        """End it and wait."""
        self.process.send_signal(how)
        self.process.wait(seconds(30))
        self._log.close()


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[Server]:
    server = Server(folder, port)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGTERM)


@pytest.fixture
def chromium(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A browser that reaches this machine without a proxy."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Rater:
    """A person at the page, in a browser profile of their own."""

    def __init__(self, browser: Any, port: int, locale: str, width: int = 1200) -> None:
        self.context = browser.new_context(locale=locale, viewport={"width": width, "height": 800})
        self.context.set_default_timeout(1000 * seconds(60))
        self.page = self.context.new_page()
        self.outside: list[str] = []
        self.received: list[str] = []
        self.address = f"http://127.0.0.1:{port}/"
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def _answered(self, response: Any) -> None:
        if response.url.endswith((".js", ".css", ".woff2")):
            return
        with contextlib.suppress(sync_api.Error):  # a redirect, and a stream cut by the reload, have no body
            self.received.append(response.text())

    def arrive(self) -> None:
        """Open the page, or reload it, and wait until it is drawn."""
        self.page.goto(self.address)
        self.page.locator("#start, #next").first.wait_for()

    def begin(self) -> None:
        """Press the first button."""
        self.page.locator("#start").click()
        self.page.locator("#next").wait_for()

    @property
    def text(self) -> str:
        """What the page shows as the text, its place included."""
        return str(self.page.locator(".judge .page").inner_text())

    @property
    def number(self) -> int:
        """Number of the text shown, in the test."""
        return int(self.page.locator(".opening").inner_text().split()[1].rstrip("."))

    def answer(self, given: int) -> None:
        """Choose, send, and wait for what comes."""
        before = self.text
        self.page.locator("#answer label").nth(given - 1).click()
        self.page.locator("#next").click()
        self.page.wait_for_function("before => document.querySelector('.judge .page').innerText !== before", arg=before)


@needs_browser
def test_raters_go_through_ten_texts_with_a_reload_and_a_kill_and_the_results_page_is_right(
    folder: Path, chromium: Any
) -> None:
    port = free_port()
    test = small_test()
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(serving(folder, port))
        first = Rater(chromium, port, "ko-KR")
        second = Rater(chromium, port, "en-GB", width=400)
        for rater in (first, second):
            rater.arrive()
            rater.begin()
        assert "10편 가운데 1번째" in first.text
        assert "Text 1 of 10" in second.text
        seen = []
        for place in range(10):
            seen.append(first.number)
            # The two take turns, so that each writes between the other's answers.
            first.answer(ANSWERS["a"][first.number])
            second.answer(ANSWERS["c"][second.number])
            if place == 3:
                before = first.text
                first.page.locator("#answer label").nth(0).click()
                first.arrive()
                assert first.text == before and "10편 가운데 5번째" in before
                assert first.page.locator("#answer input:checked").count() == 0
            if place == 5:
                server.end(signal.SIGKILL)
                server = servers.enter_context(serving(folder, port))
                for rater in (first, second):
                    rater.arrive()
                assert "10편 가운데 7번째" in first.text
        assert "모두 끝났습니다" in first.text and "That was all" in second.text
        server.end(signal.SIGINT)
        assert server.process.returncode == 0
        assert "Traceback" not in (folder / "log").read_text()
    assert sorted(seen) == list(range(10))
    for rater in (first, second):
        assert rater.outside == []
        # Markup in JSON has its quotes escaped, once or twice.
        received = [text.replace("\\", "") for text in rater.received]
        assert received and not any("secret-name" in text for text in received)
        assert not any(f'"{author}"' in text for text in received for author in AUTHORS)

        rater.context.close()

    third = Ratings(folder, test)
    name = third.new_rater()
    for item, answer in zip(test.items, ANSWERS["b"], strict=True):
        third.write(Rating(name, item.id, answer))
    done = run_malmoi("judge", "results", str(folder))
    assert done.returncode == 0, done.stderr
    assert str(folder / "results.html") in done.stdout

    # Computed by hand in tests/evaluation/human_eval/test_results.py.
    page = chromium.new_page()
    page.set_default_timeout(1000 * seconds(60))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folder / "results.html").as_uri())
    page.locator("#accuracy .trace").first.wait_for(state="attached")
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#accuracy-table-en tbody tr").all()]
    assert rows == [
        [MODEL, "3", "65.3%", "0.0 to 100.0%", "0.493", "-0.65", "0.580"],
        ["control", "3", "77.8%", "65.8 to 89.7%", "0.010", "-", "-"],
    ]
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#answers-table-en tbody tr").all()]
    assert rows == [
        ["people", "", "12", "8.3%", "3 of 11", "27.3%", ""],
        [MODEL, "4", "12", "16.7%", "5 of 10", "50.0%", "18.7 to 81.3%"],
        ["control", "2", "6", "0.0%", "5 of 6", "83.3%", "35.9 to 99.6%"],
    ]
    shown = page.locator("#accuracy .js-plotly-plot, #accuracy.js-plotly-plot").first
    means = shown.evaluate("plot => plot.data[1].y.map(Number)")
    assert means == pytest.approx([100 * 47 / 72, 100 * 7 / 9])
    assert page.locator("h1:visible").all_inner_texts() == ["Person or machine? What 3 raters found out"]
    page.locator(".language label").first.click()
    assert page.locator("h1:visible").all_inner_texts() == ["사람일까, 기계일까? 평가자 3명의 결과"]
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#answers-table-ko tbody tr").all()]
    assert rows[0] == ["사람", "", "12", "8.3%", "11개 중 3개", "27.3%", ""]
    assert page.locator("#accuracy .ytitle").inner_html() == "정확도, %"
    assert asked == [(folder / "results.html").as_uri()]
    korean = chromium.new_context(locale="ko-KR", viewport={"width": 360, "height": 800}).new_page()
    korean.goto((folder / "results.html").as_uri())
    korean.locator("#accuracy .trace").first.wait_for(state="attached")
    assert korean.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert korean.locator("h1:visible").all_inner_texts() == ["사람일까, 기계일까? 평가자 3명의 결과"]


def test_what_is_shown_of_a_text_does_not_depend_on_its_author() -> None:
    from malmoi.launch.human_eval.page import page_html

    item = small_test().items[0]
    others = [
        replace(item, author=author, model=model, place=str(seed), seed=seed, human_characters=seed)
        for seed, (author, model) in enumerate(zip(AUTHORS, ("", MODEL, "runs/other") * 4, strict=False))
    ]
    pages = {page_html(WORDS["ko"], now=NextItem(each, 1, 10)) for each in (item, *others)}
    assert len(pages) == 1 and "secret-name" not in pages.pop()


@needs_browser
def test_the_page_shows_text_as_text_and_keeps_one_answer_a_text(folder: Path, chromium: Any) -> None:
    port = free_port()
    with serving(folder, port):
        rater = Rater(chromium, port, "ko-KR", width=360)
        rater.arrive()
        rater.begin()
        number = rater.number
        assert rater.page.locator(".opening").inner_text() == f"첫머리 {number}. <b>굵게</b> ${{1 + 1}}"
        continuation = f"이어지는 글 <script>window.attacked = 1</script> {{{{x}}}} & 끝\n다음 줄 {number} …"
        assert rater.page.locator(".continuation").inner_text() == continuation
        assert rater.page.evaluate("typeof window.attacked") == "undefined"
        assert rater.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        for part in (".opening", ".continuation"):
            assert rater.page.locator(part).evaluate("part => getComputedStyle(part).wordBreak") == "keep-all"
        rater.page.locator("#next").click()
        rater.page.get_by_text("먼저 답을 하나 골라 주세요.").wait_for()
        assert Ratings(folder, small_test()).all() == ()
        rater.page.locator("#answer label").nth(3).click()
        rater.page.locator("#language label").nth(1).click()
        rater.page.get_by_text("Who wrote what follows the beginning?").wait_for()
        assert rater.page.locator("#answer input:checked").count() == 1
        assert rater.number == number
        rater.page.locator("#next").click()
        rater.page.get_by_text("Text 2 of 10").wait_for()
        [rating] = Ratings(folder, small_test()).all()
        assert (rating.item, rating.answer) == (small_test().items[number].id, 4)
        # A second window of the same rater still shows the text that this one answers: the first answer counts.
        other = rater.context.new_page()
        other.goto(rater.address)
        other.get_by_text("Text 2 of 10").wait_for()
        rater.answer(1)
        other.locator("#answer label").nth(4).click()
        other.locator("#next").click()
        other.get_by_text("Text 3 of 10").wait_for()
        assert [rating.answer for rating in Ratings(folder, small_test()).all()] == [4, 1]
        order = [item.id for item in items_in_order(small_test(), rating.rater)]
        assert [each.item for each in Ratings(folder, small_test()).all()] == order[:2]
        sent = rater.context.request.post(
            f"{rater.address}gradio_api/upload",
            multipart={"files": {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x" * 1000}},
        )
        assert not sent.ok
        for path in ("items.json", RATINGS_FILE):
            for prefix in ("gradio_api/file=", "file="):
                answer = rater.context.request.get(f"{rater.address}{prefix}{folder / path}")
                assert MODEL not in answer.text() and not answer.ok


def write_ratings(folder: Path) -> None:
    ratings = Ratings(folder, small_test())
    names: dict[str, str] = {}
    for rating in known_ratings():
        if rating.rater not in names:
            names[rating.rater] = ratings.new_rater()
        ratings.write(Rating(names[rating.rater], rating.item, rating.answer))


def test_results_are_a_table_or_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ratings(folder)
    assert main(["judge", "results", str(folder), "--json", "--out", str(folder / "page.html")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["writers"][0]["accuracy"] == pytest.approx(47 / 72)
    assert (folder / "page.html").is_file() and not (folder / "results.html").exists()
    assert main(["judge", "results", str(folder), "--min_control_accuracy", "0.75"]) == 0
    table = capsys.readouterr().out
    assert "Raters excluded for too low an accuracy on the control: 1." in table
    assert f"{MODEL} " in table and "50%" in table


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["judge", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_bad_input_is_exit_code_2_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'serve'" in refused(capsys, "serv")
    assert "PATH missing" in refused(capsys, "serve")
    assert "no blind test" in refused(capsys, "serve", str(folder / "none"))
    assert "nobody has answered yet" in refused(capsys, "results", str(folder))
    assert "choose 0 to 65535" in refused(capsys, "serve", str(folder), "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen there" in refused(capsys, "serve", str(folder), "--port", port)
    assert "cannot listen there" in refused(capsys, "serve", str(folder), "--host", "no.such.host.invalid")
    assert not (folder / RATINGS_FILE).exists()
    write_ratings(folder)
    assert "cannot be written" in refused(capsys, "results", str(folder), "--out", str(folder / "no" / "page.html"))
    assert "min_control_accuracy 2: give" in refused(capsys, "results", str(folder), "--min_control_accuracy", "2")
    assert "holds a test already" in refused(capsys, "make", "--model", "m", "--data", "d", "--out", str(folder))


def test_help_of_the_judge_needs_no_gradio() -> None:
    done = run_malmoi("judge", "--help")
    assert done.returncode == 0 and "serve" in done.stdout
    code = (
        "import sys; from malmoi.launch.cli import main; "
        "main(['judge', 'serve', 'nowhere']); main(['judge', '--help']);"
        "sys.exit(int(bool({'gradio', 'torch', 'plotly', 'scipy'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=False).returncode == 0
