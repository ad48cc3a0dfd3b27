"""The charts of a report in a real browser: zoom by mouse and by buttons, and smoothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from malmoi.launch.commands.report import write_report
from malmoi.train.metrics.records import append_metrics
from tests.launch.browser import find_browser
from tests.launch.report.run_folders import make_run, step_record, val_record, write_corpus
from tests.time_limits import seconds

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install -y chromium")
STEPS = 20
LOSSES = [float(4 + 3 * (step % 2) - step / 10) for step in range(1, STEPS + 1)]
STATE = """() => [...document.querySelectorAll('.chart')].map((chart) => ({
  x: chart._fullLayout.xaxis.range.map(Number),
  y: chart._fullLayout.yaxis.range.map(Number),
  traces: chart.data.map(({name, y, opacity, mode}) => ({name, y, opacity, mode})),
  zooms: chart.data.some((trace) => trace.meta.x),
}))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoom")
    run = folder / "run"
    make_run(run, write_corpus(folder / "corpus.jsonl"), steps=0, planned=STEPS)
    for step, loss in enumerate(LOSSES, 1):
        append_metrics(run, step_record(step, loss=loss))
        if step % 10 == 0:
            append_metrics(run, val_record(step))
    write_report((str(run),))
    return run / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(params=[1400, 360], ids=["wide", "narrow"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    shown = browser.new_page(viewport={"width": request.param, "height": 900})
    shown.set_default_timeout(1000 * seconds(30))
    problems: list[str] = []
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.goto(report.as_uri())
    shown.wait_for_function(
        "() => [...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('svg .trace'))"
    )
    yield shown
    assert problems == []
    assert shown.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    shown.close()


def training_charts(page: Any) -> list[dict[str, Any]]:
    return [chart for chart in page.evaluate(STATE) if chart["zooms"]]


def chart_box(page: Any) -> tuple[float, float, float]:
    """Left edge, width and middle height of where the first chart draws, in the window."""
    area = page.locator(".chart .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    return box["x"], box["width"], box["y"] + box["height"] / 2


def drag(page: Any, start: float, end: float) -> None:
    left, width, middle = chart_box(page)
    page.mouse.move(left + start * width, middle)
    page.mouse.down()
    page.mouse.move(left + end * width, middle, steps=5)
    page.mouse.up()


def wait_for_zoom(page: Any, zoomed: bool) -> None:
    page.wait_for_function(f"() => document.querySelector('.axis [name=reset]').disabled === {str(not zoomed).lower()}")


def test_a_drag_zooms_the_x_range_of_all_training_charts_and_a_double_click_resets_it(page: Any) -> None:
    before = training_charts(page)
    low, high = before[0]["x"]
    drag(page, 0.25, 0.5)
    wait_for_zoom(page, True)
    after = training_charts(page)
    assert after[0]["x"] == pytest.approx([low + 0.25 * (high - low), low + 0.5 * (high - low)], rel=0.05)
    assert all(chart["x"] == after[0]["x"] for chart in after), "charts along one axis are zoomed together"
    assert after[0]["y"][1] - after[0]["y"][0] < before[0]["y"][1] - before[0]["y"][0], "y fits what is seen"
    left, width, middle = chart_box(page)
    page.mouse.dblclick(left + width / 2, middle)
    wait_for_zoom(page, False)
    assert [chart["x"] for chart in training_charts(page)] == [chart["x"] for chart in before]
    assert [chart["y"] for chart in training_charts(page)] == [chart["y"] for chart in before]


def test_the_keyboard_zooms_moves_and_resets(page: Any) -> None:
    before = training_charts(page)[0]["x"]
    full = [32.0, 32.0 * STEPS]
    quarter = (full[1] - full[0]) / 4
    for key, expected in (
        ("in", [full[0] + quarter, full[1] - quarter]),
        ("left", [full[0], full[0] + 2 * quarter]),
        ("right", [full[0] + quarter, full[1] - quarter]),
        ("in", [full[0] + 1.5 * quarter, full[1] - 1.5 * quarter]),
        ("out", [full[0] + quarter, full[1] - quarter]),
    ):
        page.locator(f".axis [name={key}]").press("Enter")
        assert training_charts(page)[0]["x"] == pytest.approx(expected), key
    page.locator(".axis [name=reset]").press("Enter")
    assert training_charts(page)[0]["x"] == before


def test_smoothing_is_an_exponential_moving_average_with_bias_correction(page: Any) -> None:
    def loss_curves() -> list[dict[str, Any]]:
        return [trace for trace in training_charts(page)[0]["traces"] if trace["name"] == "training"]

    [plain] = loss_curves()
    assert plain["y"] == pytest.approx(LOSSES)
    page.locator(".axis [name=smoothing]").fill("0.8")
    pale, smooth = loss_curves()
    assert pale["y"] == plain["y"] and pale["opacity"] < 0.5
    # Adam's correction (Kingma and Ba, 2015, algorithm 1), which is TensorBoard's
    total, expected = 0.0, []
    for count, loss in enumerate(LOSSES, 1):
        total = 0.8 * total + 0.2 * loss
        expected.append(total / (1 - 0.8**count))
    assert smooth["y"] == pytest.approx(expected)
    [validation] = [trace for trace in training_charts(page)[0]["traces"] if trace["name"] == "validation"]
    assert validation["y"] == [2.5, 2.5], "evaluations stay as they are"
    page.locator(".axis [name=smoothing]").fill("0")
    [again] = loss_curves()
    assert again["y"] == plain["y"]


def test_another_axis_shows_everything_again(page: Any) -> None:
    drag(page, 0.25, 0.5)
    wait_for_zoom(page, True)
    page.locator(".axis [value=steps]").check()
    low, high = training_charts(page)[0]["x"]
    assert low <= 1 and high >= STEPS
