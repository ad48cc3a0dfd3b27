"""The few-shot part of a report: score against number of examples, a curve a model, as GPT-3's paper draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from configs.errors import BadInput
from inference.fewshot_results import TaskResult, describe_fit, read_results
from launch.report_charts import Chart, chart_layout
from launch.report_data import TrainedRun

FEWSHOT_FOLDER = "fewshot"
SIGNED = ("pearson", "spearman")
LOWER_IS_BETTER = ("perplexity",)


@dataclass(frozen=True)
class ModelResults:
    """All tasks of one model."""

    label: str
    results: tuple[TaskResult, ...]

    def of(self, task: str) -> TaskResult | None:
        """The results of one task, where it was run."""
        return next((result for result in self.results if result.task == task), None)


@dataclass(frozen=True)
class FewshotTable:
    """A row a model and score."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def read_fewshot(runs: Sequence[TrainedRun], folders: Sequence[Path]) -> tuple[ModelResults, ...]:
    """The results in the run folders, and those in `folders`, one model a folder.

    Raises:
        BadInput: one of `folders` holds no result, or a file is no result of ours.
    """
    found = [ModelResults(run.label, read_results(run.folder / FEWSHOT_FOLDER)) for run in runs]
    for folder in folders:
        results = read_results(folder)
        if not results:
            raise BadInput(f"{folder}: no results of `malmoi fewshot` here; name the folder given as its --out")
        found.append(ModelResults(str(folder), results))
    return tuple(model for model in found if model.results)


def _tasks(models: Sequence[ModelResults]) -> list[str]:
    return sorted({result.task for model in models for result in model.results})


def fewshot_charts(models: Sequence[ModelResults]) -> list[Chart]:
    """A chart a task, of its first score."""
    return [_chart(task, models) for task in _tasks(models)]


def _chart(task: str, models: Sequence[ModelResults]) -> Chart:
    shown = [(number, result) for number, model in enumerate(models) if (result := model.of(task)) is not None]
    first = shown[0][1]
    metric = first.metrics[0]
    traces = [_curve(result, metric, number, models[number].label) for number, result in shown]
    shots = sorted({run.shots for _, result in shown for run in result.runs})
    baseline = first.baseline(metric)
    told = []
    for name, value, dash in (("chance", baseline.chance, "dot"), ("majority", baseline.majority, "dash")):
        if value is not None:
            traces.append(_level(name, value, shots, dash))
            told.append(f" {'Dotted' if dash == 'dot' else 'Dashed'}: {name}, {value:.3g}.")
    layout = chart_layout(metric, legend=False)
    layout["xaxis"] |= {"title": {"text": "examples in the prompt"}, "tickvals": shots}
    if metric not in (*SIGNED, *LOWER_IS_BETTER):
        layout["yaxis"]["rangemode"] = "tozero"
    direction = " Lower is better." if metric in LOWER_IS_BETTER else ""
    seeds = max(point.seeds for _, result in shown for point in result.curve(metric))
    bars = f" Bars: standard error over {seeds} draws of examples." if seeds > 1 else ""
    caption = f"{first.documents:,} documents.{direction}{bars}{''.join(told)}"
    return Chart(task, caption, {"data": traces, "layout": layout})


def _curve(result: TaskResult, metric: str, colour: int, name: str) -> dict[str, Any]:
    points = result.curve(metric)
    errors = [point.stderr or 0.0 for point in points]
    trace: dict[str, Any] = go.Scatter(
        name=name,
        x=[point.shots for point in points],
        y=[point.mean for point in points],
        error_y={"array": errors, "visible": any(errors)},
        mode="lines+markers",
        line={"width": 2},
        marker={"size": 6},
        hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
        meta={"colour": colour},
    ).to_plotly_json()
    return trace


def _level(name: str, value: float, shots: Sequence[int], dash: str) -> dict[str, Any]:
    ends = [shots[0], shots[-1]] if len(shots) > 1 else [shots[0] - 0.5, shots[0] + 0.5]
    trace: dict[str, Any] = go.Scatter(
        name=name,
        x=ends,
        y=[value, value],
        mode="lines",
        line={"width": 1, "dash": dash},
        hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
        meta={"colour": 0, "muted": True},
    ).to_plotly_json()
    return trace


def fewshot_table(models: Sequence[ModelResults]) -> FewshotTable:
    """All scores of all models, with what chance and the majority answer get."""
    shots = sorted({run.shots for model in models for result in model.results for run in result.runs})
    rows = []
    for task in _tasks(models):
        for model in models:
            result = model.of(task)
            if result is None:
                continue
            for metric in result.metrics:
                points = {point.shots: point for point in result.curve(metric)}
                baseline = result.baseline(metric)
                named = (task, metric) if len(models) == 1 else (task, metric, model.label)
                cells = [
                    "-" if point is None else _with_error(point.mean, point.stderr) for point in map(points.get, shots)
                ]
                levels = ["-" if level is None else f"{level:.3f}" for level in (baseline.chance, baseline.majority)]
                rows.append((*named, *cells, *levels, f"{result.documents:,}"))
    head = ("Task", "Score") if len(models) == 1 else ("Task", "Score", "Model")
    counted = tuple(f"{count} example{'' if count == 1 else 's'}" for count in shots)
    return FewshotTable((*head, *counted, "Chance", "Majority", "Documents"), tuple(rows))


def _with_error(mean: float, stderr: float | None) -> str:
    return f"{mean:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


def fewshot_notes(models: Sequence[ModelResults]) -> list[str]:
    """What did not fit a model's context."""
    return [
        note if len(models) == 1 else f"{model.label}: {note}"
        for model in models
        for note in describe_fit(model.results)
    ]
