"""The charts of a report as Plotly figures; the page's script adds what they share, and colors for light and dark."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import nan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from malmoi.launch.report.runs import FinetuneRun, PretrainRun, Run, validation_note
from malmoi.train.metrics.records import AnyRecord, Record, StepMetrics

AXES = ("tokens", "time", "steps")
MAX_POINTS = 2000
MEANS = 400
"""Points of the mean drawn over a longer curve."""
EVENTS = {"resume": ("triangle-up", "dot"), "rollback": ("triangle-down", "dash")}
"""Marker and line of each kind of event."""
SKIP_SYMBOL = "x-thin"
TIME_SHARES = ("data", "checkpoint", "evaluation")
LOSS_CAPTIONS = {
    PretrainRun: ("Mean over the tokens of a global batch; dashed: the validation split.", "nats per token"),
    FinetuneRun: (
        "Mean over the examples of a global batch, of the task and of language modeling together; dashed: the task "
        "alone, on the validation file.",
        "loss",
    ),
}
"""What a kind of run calls its loss, and the label of its axis."""
ChartWidth = Literal["third", "two-thirds", "wide"]
Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    title: str
    caption: str
    figure: dict[str, Any]
    """`data` and `layout` as Plotly takes them, and `events`: lines for the page's script."""
    width: ChartWidth = "third"
    """Of a wide page."""


@dataclass(frozen=True)
class Curve:
    """A curve along each of `AXES`, of which the page's reader chooses one."""

    name: str
    color: int
    """Number of the page's color."""
    x: NDArray[np.float64]
    """Shape (3, points), in the order of `AXES`."""
    y: NDArray[np.float64]
    """Shape (points,)."""
    dash: str = "solid"
    symbol: str | None = None
    """Points only, of this shape; none: a line."""
    texts: tuple[str, ...] = ()
    """Shown at each point in place of its value."""
    smooths: bool = False
    """Whether the page's reader may smooth it."""

    def traces(self) -> list[Trace]:
        """Return the curve, and over one of many points its mean: noise alone would draw a solid band."""
        kept = thinned_points(self.y, MAX_POINTS)
        if self.symbol or len(self.y) <= MEANS:
            return [self._trace(kept, "points")]
        pale = {"opacity": 0.35, "showlegend": False, "hoverinfo": "skip", "hovertemplate": None, "line": {"width": 1}}
        return [{**self._trace(kept), **pale}, self._mean()._trace(np.arange(MEANS), "mean")]

    def _mean(self) -> "Curve":
        """Means of equal stretches, over finite points."""
        edges = np.linspace(0, len(self.y), MEANS + 1).astype(np.int64)
        finite = np.isfinite(self.y)
        counts = np.add.reduceat(finite, edges[:-1], dtype=np.int64)
        with np.errstate(invalid="ignore"):
            y = np.add.reduceat(np.where(finite, self.y, 0.0), edges[:-1]) / counts
        return replace(self, x=np.add.reduceat(self.x, edges[:-1], axis=1) / np.diff(edges), y=y)

    def _trace(self, kept: NDArray[np.int64], smooth: Literal["points", "mean"] | None = None) -> Trace:
        """The points of those numbers.

        Args:
            smooth: what the page smooths, where it smooths this curve: it, or the mean over a pale one.
        """
        mode = "markers" if self.symbol else "lines+markers" if len(kept) <= 40 else "lines"
        text = {"text": [self.texts[point] for point in kept], "hovertemplate": "%{text}"} if self.texts else {}
        axes = {axis: rounded(x[kept]) for axis, x in zip(AXES, self.x, strict=True)}
        return {
            "name": self.name,
            "x": axes["tokens"],
            "y": rounded(self.y[kept]),
            "mode": mode,
            "line": {"dash": self.dash},
            **({"marker": {"size": 10, "symbol": self.symbol}} if self.symbol else {}),
            **text,
            "meta": {"color": self.color, "x": axes, **({"smooth": smooth} if smooth and self.smooths else {})},
        }


def thinned_points(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Return the numbers of at most `most` points to draw: first, last, and the lowest and highest of each stretch, so
    that no spike is lost."""
    count = len(values)
    if count <= most:
        return np.arange(count)
    kept = {0, count - 1}
    for start, end in pairwise(np.linspace(0, count, (most - 2) // 2 + 1).astype(np.int64)):
        finite = start + np.flatnonzero(np.isfinite(values[start:end]))
        if len(finite):
            kept |= {int(finite[np.argmin(values[finite])]), int(finite[np.argmax(values[finite])])}
    return np.array(sorted(kept), dtype=np.int64)


def rounded(values: Iterable[float]) -> list[float | None]:
    """Return each value to six digits, which keeps the page small; None for one that is not finite, as JSON needs."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


class TrainingCharts:
    """The charts of what changes during the training of some runs, all of one kind."""

    def __init__(self, runs: Sequence[PretrainRun] | Sequence[FinetuneRun]) -> None:
        self.runs: Sequence[Run] = runs
        longest = max(float(run.training_seconds()[-1]) for run in runs)
        self.time_unit, seconds = ("hours", 3600) if longest >= 2 * 3600 else ("minutes", 60)
        self._units = np.array([[1], [seconds], [1]], dtype=np.float64)

    def charts(self) -> list[Chart]:
        """Return the charts in the order of the page."""
        charts = [self._loss(), *self._evaluations(), *self._steps()]
        lines = self._event_lines()
        return [replace(chart, figure={**chart.figure, "events": lines}) for chart in charts]

    def _curve(
        self,
        number: int,
        records: Sequence[AnyRecord],
        values: Sequence[float] | NDArray[np.float64],
        name: str = "",
        color: int = 0,
        **style: Any,
    ) -> Curve:
        """A curve of run `number`; where there are several runs, the color is the run's and the name begins with it."""
        run = self.runs[number]
        if len(self.runs) > 1:
            name, color = f"{run.label} {name}".strip(), number
        smooths = "symbol" not in style and all(isinstance(record, StepMetrics) for record in records)
        x, y = run.positions(records) / self._units, np.array(values, dtype=np.float64)
        return Curve(name, color, x, y, smooths=smooths, **style)

    def _curves(
        self,
        records: Callable[[Run], Sequence[Record]],
        value: Callable[[Record], float],
        name: str = "",
        color: int = 0,
    ) -> list[Curve]:
        """A curve a run of the values of its records."""
        return [
            self._curve(number, records(run), [value(record) for record in records(run)], name, color)
            for number, run in enumerate(self.runs)
        ]

    def _loss(self) -> Chart:
        curves = []
        for number, run in enumerate(self.runs):
            steps, evaluations = run.metrics.steps, run.metrics.evaluations
            curves.append(self._curve(number, steps, [record.loss for record in steps], "training"))
            if evaluations:
                losses = [record.loss for record in evaluations]
                curves.append(self._curve(number, evaluations, losses, "validation", 1, dash="dash"))
            before = [0, *(record.skipped_steps for record in steps)]
            skipped = [now for now, count in zip(steps, before, strict=False) if now.skipped_steps > count]
            if skipped:
                losses = [record.loss for record in skipped]
                curves.append(self._curve(number, skipped, losses, "skipped", 2, symbol=SKIP_SYMBOL))
            curves += self._event_curves(number)
        caption, label = LOSS_CAPTIONS[type(self.runs[0])]
        if any(curve.symbol == SKIP_SYMBOL for curve in curves):
            caption += " Cross: optimizer steps were skipped since the logged step before."
        if any(run.metrics.events for run in self.runs):
            caption += " Vertical line: a resume (dotted, triangle up) or a rollback (dashed, triangle down)."
        if any(len(run.metrics.steps) > MEANS for run in self.runs):
            caption += f" Pale: the logged steps; strong, here and below: means over each {MEANS}th of the run."
        nonfinite = sum(not np.isfinite(record.loss) for run in self.runs for record in run.metrics.steps)
        if nonfinite:
            caption += f" At {nonfinite:,} logged steps the loss was not finite: the curve has gaps there."
        return _curves_chart("Loss", caption, curves, label, width="two-thirds", legend=len(self.runs) == 1)

    def _evaluations(self) -> list[Chart]:
        """Bits per byte of pre-training; scores of fine-tuning, of several runs in a chart each."""
        charts = []
        if any(run.metrics.vals for run in self.runs):
            curves = self._curves(lambda run: run.metrics.vals, lambda record: record.bpb)
            comparable = validation_note([run for run in self.runs if isinstance(run, PretrainRun)]) is None
            caption = f"Lower is better; {'' if comparable else 'on one text '}comparable between tokenizers."
            charts.append(_curves_chart("Validation bits per byte", caption, curves, "bits per byte"))
        evaluations = [record for run in self.runs for record in run.metrics.task_vals]
        names = dict.fromkeys(name for record in evaluations for name in record.scores)
        scores = {name: self._score_curves(name, color) for color, name in enumerate(names)}
        caption = "On the validation file, at each evaluation; higher is better."
        if scores and len(self.runs) == 1:
            curves = [curve for [curve] in scores.values()]
            return [*charts, _curves_chart("Validation scores", caption, curves, "score", legend=True)]
        return [*charts, *(_curves_chart(f"Validation {name}", caption, own, name) for name, own in scores.items())]

    def _score_curves(self, score: str, color: int) -> list[Curve]:
        name = score if len(self.runs) == 1 else ""
        return self._curves(lambda run: run.metrics.task_vals, lambda val: val.scores.get(score, nan), name, color)

    def _steps(self) -> list[Chart]:
        """A chart for each metric of the logged steps but the loss."""
        norms = {run.settings.optim.max_grad_norm for run in self.runs}
        clipping = f" at {norms.pop():g}" if len(norms) == 1 and norms != {0.0} else ""
        metrics: list[tuple[str, str, str, Callable[[StepMetrics], float]]] = [
            ("Learning rate", "At the logged step.", "learning rate", lambda record: record.lr),
            ("Gradient norm", f"Before clipping{clipping}.", "norm", lambda record: record.grad_norm),
            ("Throughput", "All ranks together.", "tokens/s", lambda record: record.tokens_per_sec),
            ("MFU", "Percentage of the peak FLOP/s of all devices.", "%", lambda record: 100 * record.mfu),
            ("Peak memory", "Of rank 0, so far.", "GiB", lambda record: record.peak_mib / 1024),
        ]
        if any(run.metrics.steps[-1].skipped_steps for run in self.runs):
            caption = "Optimizer steps skipped so far because their gradient was not finite."
            metrics.append(("Skipped steps", caption, "steps", lambda record: record.skipped_steps))
        charts = [
            _curves_chart(title, caption, self._curves(lambda run: run.metrics.steps, value), label, from_zero=True)
            for title, caption, label, value in metrics
        ]
        return [*charts[:4], self._time(), *charts[4:]]

    def _time(self) -> Chart:
        """Where the time went that was not training; with several runs as one curve each."""
        shares = [100 * _time_shares(run) for run in self.runs]
        if len(self.runs) == 1:
            steps, caption = self.runs[0].metrics.steps, _time_caption(self.runs[0])
            curves = [self._curve(0, steps, shares[0][:, part], name, part) for part, name in enumerate(TIME_SHARES)]
        else:
            caption = "Percentage of time for waiting for data, checkpoints and evaluations together."
            curves = [
                self._curve(number, run.metrics.steps, shares[number].sum(1)) for number, run in enumerate(self.runs)
            ]
        single = len(self.runs) == 1
        return _curves_chart("Time not training", caption, curves, "%", from_zero=True, legend=single)

    def _event_curves(self, number: int) -> list[Curve]:
        """Marks on the loss curve, with what happened."""
        run = self.runs[number]
        losses = np.array([record.loss for record in run.metrics.steps], dtype=np.float64)
        finite = np.isfinite(losses)
        tokens = run.positions(run.metrics.steps)[0]
        curves = []
        for kind, (symbol, _) in EVENTS.items():
            events = [event for event in run.metrics.events if event.event == kind]
            if events and finite.any():
                at = np.interp([event.tokens_seen for event in events], tokens[finite], losses[finite])
                # Plotly reads hover texts as HTML.
                texts = tuple(event.text.replace("<", "&lt;") for event in events)
                curves.append(self._curve(number, events, at, kind, 3, symbol=symbol, texts=texts))
        return curves

    def _event_lines(self) -> list[dict[str, Any]]:
        """Vertical lines for the page's script: where along each axis, the dash, and of several runs the color."""
        lines: list[dict[str, Any]] = []
        for number, run in enumerate(self.runs):
            places = (run.positions(run.metrics.events) / self._units).T
            for event, place in zip(run.metrics.events, places, strict=True):
                color = {"color": number} if len(self.runs) > 1 else {}
                _, dash = EVENTS.get(event.event, ("", "dot"))
                lines.append({"x": dict(zip(AXES, rounded(place), strict=True)), "dash": dash, **color})
        return lines


def _time_shares(run: Run) -> NDArray[np.float64]:
    """Fractions of each interval's time, in the order of `TIME_SHARES`: shape (steps, 3)."""
    steps = run.metrics.steps
    return np.array([(record.data_wait_frac, record.checkpoint_frac, record.eval_frac) for record in steps])


def _time_caption(run: Run) -> str:
    """The fractions over the complete run. Logged speeds are of training alone, so an interval took longer."""
    seconds, shares = np.diff(run.training_seconds(), prepend=0.0), _time_shares(run)
    training = 1 - shares[:, 1] - shares[:, 2]
    known = np.isfinite(shares).all(1) & (training > 0)
    elapsed = seconds[known] / training[known]
    data, checkpoint, evaluation = 100 * (shares[known] * elapsed[:, None]).sum(0) / max(elapsed.sum(), 1e-9)
    return (
        f"Percentage of rank 0's time; of the complete run {data:.2g}% waiting for data, {checkpoint:.2g}% for "
        f"checkpoints, {evaluation:.2g}% for evaluations."
    )


def length_chart(run: PretrainRun) -> Chart | None:
    """Return the lengths of the training documents; none where the shards are not there."""
    if run.shards is None or not run.shards.lengths.documents.any():
        return None
    lengths = run.shards.lengths
    filled = np.flatnonzero(lengths.documents)
    shown = slice(filled[0], filled[-1] + 1)
    edges = lengths.edges[filled[0] : filled[-1] + 2].tolist()
    ranges = [f"{low:,} to {high - 1:,} tokens" for low, high in pairwise(edges)]
    traces = [
        {
            "name": name,
            "x": edges,
            "y": rounded(100 * np.append(counts[shown], counts[filled[-1]]) / counts.sum()),
            "mode": "lines",
            "line": {"shape": "hv", "dash": dash},
            "text": [*ranges, ranges[-1]],
            "hovertemplate": "%{text}: %{y:.1f}%",
            "fill": fill,
            "meta": {"color": color},
        }
        for color, (name, counts, dash, fill) in enumerate(
            (("documents", lengths.documents, "solid", "tozeroy"), ("their tokens", lengths.tokens, "dash", "none"))
        )
    ]
    block = run.settings.model.block_size
    powers = [4**power for power in range(16)]
    xaxis = {
        "type": "log",
        "title": {"text": "tokens in a document"},
        "tickvals": powers,
        "ticktext": [str(n) if n < 2**10 else f"{n >> 10}Ki" if n < 2**22 else f"{n >> 20}Mi" for n in powers],
    }
    line = {"type": "line", "x0": block, "x1": block, "yref": "paper", "y0": 0, "y1": 1}
    sampled = f" Every {lengths.stride}th document was counted." if lengths.stride > 1 else ""
    caption = (
        "Training documents by length, <s> and </s> included, two bins per doubling; the vertical line is a block "
        f"({block:,} tokens).{sampled}"
    )
    title = "Document lengths"
    return plotly_chart(title, caption, traces, "% of all", "wide", legend=True, xaxis=xaxis, shapes=[line])


def plotly_chart(
    title: str,
    caption: str,
    traces: Iterable[Trace],
    label: str,
    width: ChartWidth = "third",
    from_zero: bool = False,
    legend: bool = False,
    **layout: Any,
) -> Chart:
    """Return a chart whose y axis is called `label`, with more of Plotly's `layout`."""
    yaxis = {"title": {"text": label}, **({"rangemode": "tozero"} if from_zero else {})}
    return Chart(title, caption, {"data": [*traces], "layout": {"showlegend": legend, "yaxis": yaxis, **layout}}, width)


def _curves_chart(title: str, caption: str, curves: Iterable[Curve], label: str, **others: Any) -> Chart:
    return plotly_chart(title, caption, [trace for curve in curves for trace in curve.traces()], label, **others)
