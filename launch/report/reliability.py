"""The calibration of a file's answers as a chart."""

from collections.abc import Sequence

from malmoi.evaluation.calibration import Calibration
from malmoi.launch.report.charts import Chart, plotly_chart, rounded
from malmoi.launch.report.runs import FinetuneRun


def reliability_charts(runs: Sequence[FinetuneRun]) -> list[Chart]:
    """Return a reliability diagram of each file that a run's model was scored on and that has classes or choices."""
    return [
        reliability_chart(f"{f'{run.label}: ' if len(runs) > 1 else ''}{part.part} file: calibration", part.calibration)
        for run in runs
        for part in (run.result.files if run.result is not None else ())
        if part.calibration is not None
    ]


def reliability_chart(title: str, calibration: Calibration) -> Chart:
    """Return a reliability diagram: how often answers are right, by how probable the model says that they are."""
    filled = [each for each in calibration.bins if each.examples]
    hover = [
        f"{each.low:.1f} to {each.high:.1f}: {100 * each.accuracy:.1f}% of {each.examples:,} right, "
        f"mean probability {each.confidence:.3f}"
        for each in filled
    ]
    bars = {
        "type": "bar",
        "name": "accuracy",
        "x": [round((each.low + each.high) / 2, 3) for each in filled],
        "y": rounded([each.accuracy for each in filled]),
        "width": [round(each.high - each.low, 3) * 0.9 for each in filled],
        "text": [f"{each.examples:,}" for each in filled],
        "textposition": "none",
        "hovertext": hover,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "meta": {"color": 0},
    }
    diagonal = {
        "name": "perfect calibration",
        "x": [0, 1],
        "y": [0, 1],
        "mode": "lines",
        "line": {"width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "hovertemplate": None,
        "meta": {"color": 0, "muted": True},
    }
    caption = (
        f"How often answers are right, by the probability of the answer in {len(calibration.bins)} bins of equal "
        f"width; dotted: as often as they say. Expected calibration error {calibration.error:.4f} (Guo et al. 2017)."
    )
    axis = {"title": {"text": "probability of the answer"}, "range": [0, 1]}
    chart = plotly_chart(title, caption, [bars, diagonal], "fraction right", xaxis=axis, hovermode="closest")
    chart.figure["layout"]["yaxis"]["range"] = [0, 1]
    return chart
