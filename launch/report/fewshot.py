"""The few-shot part of a report: score against number of examples, a curve a model, as GPT-3's paper draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from malmoi.errors import UserError
from malmoi.evaluation.fewshot.results import Point, TaskResult, describe_fit, read_results, score_text
from malmoi.launch.report.charts import Chart, Trace, plotly_chart, rounded
from malmoi.launch.report.rows import ShownRows, fewshot_rows
from malmoi.launch.report.runs import Run

FEWSHOT_FOLDER = "fewshot"
SIGNED = ("pearson", "spearman")
LOWER_IS_BETTER = ("perplexity",)


@dataclass(frozen=True)
class ModelResults:
    """All tasks of one model."""

    label: str
    results: tuple[TaskResult, ...]
    folder: Path

    def task(self, name: str) -> TaskResult | None:
        """Return the results of one task; none where it was not run."""
        return next((result for result in self.results if result.task == name), None)


@dataclass(frozen=True)
class FewshotSection:
    """What the page shows of the few-shot tasks of some models."""

    labels: list[str]
    charts: list[Chart]
    head: list[str]
    rows: list[list[str]]
    """Cells of the table of all scores."""
    notes: list[str]
    """What did not fit a model's context."""
    samples: list[ShownRows]
    """Of the tasks whose samples are logged."""


def read_fewshot(runs: Sequence[Run], folders: Sequence[Path]) -> FewshotSection | None:
    """Return the results in the run folders and those in `folders`, one model a folder; none where there are none.

    Raises:
        UserError: one of `folders` holds no result, or a file is not a valid result.
    """
    models = [_model_results(run.label, run.folder / FEWSHOT_FOLDER) for run in runs]
    for folder in folders:
        models.append(_model_results(str(folder), folder))
        if not models[-1].results:
            raise UserError(f"{folder}: no results of `malmoi fewshot` here; name the folder given as its --out")
    models = [model for model in models if model.results]
    if not models:
        return None
    several = len(models) > 1
    fits = [(model.label, note) for model in models for note in describe_fit(model.results)]
    tasks = sorted({result.task for model in models for result in model.results})
    shots = sorted({run.shots for model in models for result in model.results for run in result.runs})
    return FewshotSection(
        labels=[model.label for model in models],
        charts=[_chart(task, models) for task in tasks],
        head=[
            *("Task", "Score", *(("Model",) if several else ())),
            *(f"{count} example{'' if count == 1 else 's'}" for count in shots),
            *("Chance", "Majority", "Documents"),
        ],
        rows=[row for task in tasks for model in models for row in _rows(model, task, shots, several)],
        notes=[f"{label}: {note}" if several else note for label, note in fits],
        samples=[
            rows
            for task in tasks
            for model in models
            if (result := model.task(task)) is not None
            and (rows := fewshot_rows(model.folder, result, model.label if several else "")) is not None
        ],
    )


def _model_results(label: str, folder: Path) -> ModelResults:
    return ModelResults(label, read_results(folder), folder)


def _rows(model: ModelResults, task: str, shots: Sequence[int], several: bool) -> list[list[str]]:
    result = model.task(task)
    rows = []
    for metric in result.metrics if result else ():
        assert result is not None
        points = {point.shots: point for point in result.curve(metric)}
        baseline = result.baseline(metric)
        cells = ["-" if (point := points.get(count)) is None else _mean_text(point) for count in shots]
        levels = ["-" if level is None else score_text(level) for level in (baseline.chance, baseline.majority)]
        rows.append([task, metric, *([model.label] if several else []), *cells, *levels, f"{result.documents:,}"])
    return rows


def _mean_text(point: Point) -> str:
    return score_text(point.mean) + ("" if point.stderr is None else f" ± {score_text(point.stderr)}")


def _chart(task: str, models: Sequence[ModelResults]) -> Chart:
    """A task's first score."""
    shown = [(color, result) for color, model in enumerate(models) if (result := model.task(task)) is not None]
    first = shown[0][1]
    metric = first.metrics[0]
    baseline = first.baseline(metric)
    shots = sorted({run.shots for _, result in shown for run in result.runs})
    traces = [_curve(result, metric, color, models[color].label) for color, result in shown]
    seeds = max(point.seeds for _, result in shown for point in result.curve(metric))
    caption = f"{first.documents:,} documents."
    caption += " Lower is better." if metric in LOWER_IS_BETTER else ""
    caption += f" Error bars: standard error over {seeds} draws of examples." if seeds > 1 else ""
    ends = [shots[0], shots[-1]] if len(shots) > 1 else [shots[0] - 0.5, shots[0] + 0.5]
    for name, value, dash in (("chance", baseline.chance, "dot"), ("majority", baseline.majority, "dash")):
        if value is not None:
            line, meta = {"width": 1, "dash": dash}, {"color": 0, "muted": True}
            traces.append({"name": name, "x": ends, "y": [value, value], "mode": "lines", "line": line, "meta": meta})
            caption += f" {'Dotted' if dash == 'dot' else 'Dashed'}: {name}, {value:.3g}."
    from_zero = metric not in (*SIGNED, *LOWER_IS_BETTER)
    xaxis = {"title": {"text": "examples in the prompt"}, "tickvals": shots}
    return plotly_chart(task, caption, traces, metric, from_zero=from_zero, xaxis=xaxis)


def _curve(result: TaskResult, metric: str, color: int, name: str) -> Trace:
    points = result.curve(metric)
    errors = [point.stderr or 0.0 for point in points]
    return {
        "name": name,
        "x": [point.shots for point in points],
        "y": rounded([point.mean for point in points]),
        "error_y": {"array": rounded(errors), "visible": any(errors)},
        "mode": "lines+markers",
        "meta": {"color": color},
    }
