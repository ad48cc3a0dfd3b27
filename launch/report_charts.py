"""The charts of a report, as plotly figures whose colours the page sets to fit light and dark."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from launch.report_curves import MEANS, Curve, plain_numbers
from launch.report_data import RunRecord, TrainedRun
from launch.report_events import event_curves, event_lines
from train.metrics import StepMetrics

MIB_A_GIB = 1024
SKIP_SYMBOL = "x-thin"


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    title: str
    caption: str
    """What the curves are and what one may read from them."""
    figure: dict[str, Any]
    width: Literal["third", "two-thirds", "wide"] = "third"
    """Of a wide page."""

    def as_json(self) -> str:
        """The figure for a `<script>` element: whatever the data holds, it cannot end the element."""
        text = json.dumps(self.figure, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@dataclass(frozen=True)
class LossWords:
    """What a kind of run calls its losses."""

    caption: str
    label: str
    """Of the upright axis."""
    held_out: str
    """Name of the curve of what is not trained on."""


PRE_TRAINING = LossWords(
    "Mean over the tokens of a global batch; the dashed curve is text never trained on.", "nats a token", "held-out"
)


@dataclass(frozen=True)
class TimeUnit:
    """What the charts of a report count time in."""

    name: str
    seconds: int


def time_unit(runs: Sequence[TrainedRun]) -> TimeUnit:
    """Hours where a run is that long, else minutes."""
    longest = max(float(run.training_seconds()[-1]) for run in runs)
    return TimeUnit("hours", 3600) if longest >= 2 * 3600 else TimeUnit("minutes", 60)


def curve_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Everything that changes as pre-training goes on."""
    unit = time_unit(runs)
    charts = []
    if any(run.metrics.held_out for run in runs):
        bits = [
            look_curve(run, unit, number, [line.bits_per_byte for line in run.metrics.held_out], name_of(runs, run, ""))
            for number, run in enumerate(runs)
        ]
        charts.append(
            curves_chart(
                "Held-out bits per byte", "Lower is better; comparable between tokenizers.", bits, "bits per byte"
            )
        )
    return with_events([loss_chart(runs, unit, PRE_TRAINING), *charts, *step_charts(runs, unit)], runs, unit)


def with_events(charts: Sequence[Chart], runs: Sequence[TrainedRun], unit: TimeUnit) -> list[Chart]:
    """Charts with upright lines where the runs were started again or went back."""
    lines = event_lines(runs, unit.seconds)
    return [replace(chart, figure={**chart.figure, "events": lines}) for chart in charts]


def step_charts(runs: Sequence[TrainedRun], unit: TimeUnit) -> list[Chart]:
    """A chart for each figure of the logged steps but the loss."""
    plain: list[tuple[str, str, str, Callable[[StepMetrics], float]]] = [
        ("Learning rate", "As set for the logged step.", "learning rate", lambda line: line.lr),
        ("Gradient norm", _clip_caption(runs), "norm", lambda line: line.grad_norm),
        ("Throughput", "All ranks together.", "tokens a second", lambda line: line.tokens_per_second),
        ("Arithmetic used", "Share of the peak of all devices (MFU).", "%", lambda line: 100 * line.mfu),
        ("Memory", "Peak so far of rank 0.", "GiB", lambda line: line.memory / MIB_A_GIB),
    ]
    if any(run.metrics.steps[-1].skipped_steps for run in runs):
        caption = "Updates passed over so far, whose gradient was not finite."
        plain.append(("Skipped steps", caption, "steps", lambda line: line.skipped_steps))
    charts = []
    for title, caption, label, value in plain:
        curves = [_step_curve(run, unit, number, value, name_of(runs, run, "")) for number, run in enumerate(runs)]
        charts.append(curves_chart(title, caption, curves, label, from_zero=True))
    return [*charts[:4], _time_chart(runs, unit), *charts[4:]]


def _time_chart(runs: Sequence[TrainedRun], unit: TimeUnit) -> Chart:
    """Where the time went that was not spent on updates; of several runs in one curve each."""
    if len(runs) > 1:
        curves = [_step_curve(run, unit, number, _other_time, run.label) for number, run in enumerate(runs)]
        caption = "Share of time for waiting for data, checkpoints and looks together."
        return curves_chart("Where the time went", caption, curves, "%", from_zero=True)
    curves = []
    for number, name in enumerate(OTHER_SHARES):
        curves.append(_step_curve(runs[0], unit, number, partial(_other_share, number), name))
    caption = _time_caption(runs[0])
    return curves_chart("Where the time went", caption, curves, "%", from_zero=True, has_legend=True)


OTHER_SHARES = ("data", "checkpoints", "looks")


def _other_share(number: int, line: StepMetrics) -> float:
    return _other_shares(line)[number]


def _other_time(line: StepMetrics) -> float:
    return sum(_other_shares(line))


def _other_shares(line: StepMetrics) -> tuple[float, float, float]:
    """Percent of an interval's time, as `OTHER_SHARES` says."""
    return 100 * line.data_wait, 100 * line.saving, 100 * line.evaluating


def length_chart(run: RunRecord) -> Chart | None:
    """How long the training documents are; none where the shards are not there."""
    if run.data is None or not run.data.lengths.documents.any():
        return None
    lengths = run.data.lengths
    filled = np.flatnonzero(lengths.documents)
    shown = slice(filled[0], filled[-1] + 1)
    edges = lengths.edges[filled[0] : filled[-1] + 2]
    traces = []
    for colour, (name, counts) in enumerate((("documents", lengths.documents), ("their tokens", lengths.tokens))):
        shares = 100 * counts[shown] / counts.sum()
        ranges = [f"{low:,} to {high - 1:,} tokens" for low, high in pairwise(edges)]
        step = go.Scatter(
            name=name,
            x=edges.tolist(),
            y=plain_numbers(np.append(shares, shares[-1])),
            mode="lines",
            line={"shape": "hv", "width": 2, "dash": "solid" if colour == 0 else "dash"},
            text=[*ranges, ranges[-1]],
            hovertemplate="%{text}: %{y:.1f}%<extra>%{fullData.name}</extra>",
            meta={"colour": colour},
        ).to_plotly_json()
        traces.append({**step, "fill": "tozeroy"} if colour == 0 else step)
    layout = chart_layout("% of all", legend=True)
    powers_of_four = [4**power for power in range(16)]
    layout["xaxis"] |= {"type": "log", "title": {"text": "tokens in a document"}, "tickvals": powers_of_four}
    layout["xaxis"]["ticktext"] = [_short_count(power) for power in powers_of_four]
    block = run.settings.model.block_size
    layout["shapes"] = [{"type": "line", "x0": block, "x1": block, "yref": "paper", "y0": 0, "y1": 1}]
    sampled = f" Every {lengths.stride}th document was counted." if lengths.stride > 1 else ""
    caption = (
        "Training documents by length, <s> and </s> included, two bars to a doubling; the upright line is a block "
        f"({block:,} tokens).{sampled}"
    )
    return Chart("Document lengths", caption, {"data": traces, "layout": layout}, "wide")


def _short_count(count: int) -> str:
    return str(count) if count < 2**12 else f"{count >> 10}Ki" if count < 2**22 else f"{count >> 20}Mi"


def loss_chart(runs: Sequence[TrainedRun], unit: TimeUnit, words: LossWords) -> Chart:
    """The loss of training and of what is not trained on, with what happened on the way."""
    curves = []
    for number, run in enumerate(runs):
        held_out_colour = 1 if len(runs) == 1 else number
        curves.append(_step_curve(run, unit, number, lambda line: line.loss, name_of(runs, run, "training")))
        if run.metrics.looks:
            name = name_of(runs, run, words.held_out)
            losses = [line.held_out_loss for line in run.metrics.looks]
            curves.append(look_curve(run, unit, held_out_colour, losses, name, dashed=True))
        skips = _skips(run, unit, 2 if len(runs) == 1 else number, name_of(runs, run, "skipped"))
        if skips is not None:
            curves.append(skips)
        curves += event_curves(run, unit.seconds, 3 if len(runs) == 1 else number, name_of(runs, run, ""))
    caption = words.caption
    if any(curve.symbol == SKIP_SYMBOL for curve in curves):
        caption += " A cross is a stretch in which updates were skipped."
    if any(run.metrics.events for run in runs):
        caption += " An upright line is a restart (dotted, triangle up) or a rollback (dashed, triangle down)."
    if any(len(run.metrics.steps) > MEANS for run in runs):
        caption += (
            f" Pale: the logged steps with every spike; strong: the mean of each {MEANS}th of the run, here and below."
        )
    missing = sum(not np.isfinite(line.loss) for run in runs for line in run.metrics.steps)
    if missing:
        caption += f" At {missing:,} logged steps the loss was no number: the curve has gaps there."
    return curves_chart("Loss", caption, curves, words.label, "two-thirds", has_legend=len(runs) == 1)


def name_of(runs: Sequence[TrainedRun], run: TrainedRun, what: str) -> str:
    """What a curve is called: of several runs, whose it is too."""
    return what if len(runs) == 1 else f"{run.label} {what}".strip()


def _clip_caption(runs: Sequence[TrainedRun]) -> str:
    limits = {run.settings.train.clip_norm for run in runs}
    if len(limits) > 1 or limits == {0.0}:
        return "Before clipping."
    return f"Before clipping at {limits.pop():g}."


def _time_caption(run: TrainedRun) -> str:
    """Over the whole run. Speeds are over training alone, so an interval is longer by the shares that were not."""
    seconds = np.diff(run.training_seconds(), prepend=0.0)
    shares = np.array([_other_shares(line) for line in run.metrics.steps], dtype=np.float64) / 100
    training = 1 - shares[:, 1] - shares[:, 2]
    known = np.isfinite(seconds) & np.isfinite(shares).all(1) & (training > 0)
    whole = seconds[known] / training[known]
    waiting, saving, looking = 100 * (shares[known] * whole[:, None]).sum(0) / max(whole.sum(), 1e-9)
    return (
        f"Share of time that rank 0 did not train: {waiting:.2g}% of the whole run waiting for its next batch, "
        f"{saving:.2g}% for checkpoints, {looking:.2g}% looking at what is not trained on."
    )


def _step_curve(
    run: TrainedRun, unit: TimeUnit, colour: int, value: Callable[[StepMetrics], float], name: str
) -> Curve:
    lines = run.metrics.steps
    return Curve(
        name,
        colour,
        tokens=np.array([line.tokens for line in lines], dtype=np.float64),
        time=run.training_seconds() / unit.seconds,
        steps=np.array([line.step for line in lines], dtype=np.float64),
        values=np.array([value(line) for line in lines], dtype=np.float64),
    )


def look_curve(
    run: TrainedRun, unit: TimeUnit, colour: int, values: Sequence[float], name: str, dashed: bool = False
) -> Curve:
    """A value for each look at what is not trained on."""
    lines = run.metrics.looks
    tokens = np.array([line.tokens for line in lines], dtype=np.float64)
    logged = [0, *(line.tokens for line in run.metrics.steps)]
    return Curve(
        name,
        colour,
        tokens=tokens,
        time=np.interp(tokens, logged, [0.0, *run.training_seconds()]) / unit.seconds,
        steps=np.array([line.step for line in lines], dtype=np.float64),
        values=np.array(values, dtype=np.float64),
        dashed=dashed,
    )


def _skips(run: TrainedRun, unit: TimeUnit, colour: int, name: str) -> Curve | None:
    """A mark at each logged step since whose predecessor an update was skipped."""
    whole = _step_curve(run, unit, colour, lambda line: line.loss, name)
    counted = np.array([line.skipped_steps for line in run.metrics.steps], dtype=np.float64)
    rose = np.flatnonzero(np.diff(counted, prepend=0.0) > 0)
    if not len(rose):
        return None
    return Curve(
        name, colour, whole.tokens[rose], whole.time[rose], whole.steps[rose], whole.values[rose], symbol=SKIP_SYMBOL
    )


def curves_chart(
    title: str,
    caption: str,
    curves: Sequence[Curve],
    label: str,
    width: Literal["third", "two-thirds"] = "third",
    from_zero: bool = False,
    has_legend: bool = False,
) -> Chart:
    """A chart of curves along the axis that the reader chooses."""
    traces = [trace for curve in curves for trace in curve.traces()]
    layout = chart_layout(label, legend=has_legend)
    if from_zero:
        layout["yaxis"]["rangemode"] = "tozero"
    return Chart(title, caption, {"data": traces, "layout": layout}, width)


def chart_layout(label: str, legend: bool) -> dict[str, Any]:
    """The layout that all charts share; the page's script adds the colours."""
    layout = go.Layout(
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="x unified",
        xaxis={"automargin": True},
        yaxis={"automargin": True, "exponentformat": "none", "separatethousands": True, "title": {"text": label}},
    )
    plain: dict[str, Any] = layout.to_plotly_json()
    return plain
