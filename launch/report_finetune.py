"""The report of fine-tuning: its losses, its scores as training went on, and those of the exported model."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from configs.command_line import parse_settings
from configs.errors import BadInput
from configs.finetune_settings import FinetuneSettings
from launch.report_charts import (
    Chart,
    LossWords,
    TimeUnit,
    curves_chart,
    look_curve,
    loss_chart,
    name_of,
    step_charts,
    time_unit,
    with_events,
)
from launch.report_data import TrainedRun, logged_metrics, read_environment
from launch.report_events import event_counts
from launch.report_fewshot import ModelResults
from launch.report_html import (
    Figure,
    charts_row,
    duration,
    facts,
    fewshot_section,
    filled_page,
    heading,
    last_logged,
    section,
    settings_section,
    state,
    table,
)
from train.finetune_result import FINETUNE_FILE, FinetuneResult, ScoreRecord, finished_finetuning
from train.metrics import METRICS_FILE
from train.pretrained import model_config
from train.run_folder import CONFIG_FILE

FINE_TUNING = LossWords(
    "Mean over the examples of a global batch, of the label and of the text together; the dashed curve is the "
    "validation file's, of the label alone.",
    "loss",
    "validation",
)


@dataclass(frozen=True)
class FinetuneRecord(TrainedRun):
    """A fine-tuning."""

    settings: FinetuneSettings
    result: FinetuneResult | None

    @property
    def best_loss(self) -> float | None:
        """The lowest of the validation file."""
        return min((line.held_out_loss for line in self.metrics.validation), default=None)


def read_finetune(folder: Path, label: str) -> FinetuneRecord:
    """The fine-tuning in `folder`.

    Raises:
        BadInput: its files are none of ours, or no step is logged.
    """
    config = folder / CONFIG_FILE
    settings = parse_settings(FinetuneSettings, ["--config", str(config)], "malmoi report", "", lists=("task.fields",))
    text = config.read_text(encoding="utf-8")
    try:
        result = finished_finetuning(folder)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{folder / FINETUNE_FILE}: no result of ours ({error}); delete it and train again") from error
    return FinetuneRecord(
        folder=folder,
        label=label,
        settings=settings,
        settings_text=text,
        environment=read_environment(folder),
        metrics=logged_metrics(folder, "finetune", settings.train.log_every),
        metrics_written=(folder / METRICS_FILE).stat().st_mtime,
        is_finished=result is not None and result.settings == yaml.safe_load(text),
        result=result,
    )


def finetune_page(runs: Sequence[FinetuneRecord], now: float, fewshot: Sequence[ModelResults] = ()) -> str:
    """The page of one fine-tuning, or of several side by side.

    Args:
        now: seconds since 1970.
    """
    unit = time_unit(runs)
    charts = [loss_chart(runs, unit, FINE_TUNING), *_score_charts(runs, unit), *step_charts(runs, unit)]
    named = len(runs) > 1
    sections = [
        section("scores", "Scores", _scores(runs)),
        section("data", "Data", "".join(_data(run, named) for run in runs)),
        *fewshot_section(fewshot),
        settings_section(runs, "finetune", "launch finetune"),
    ]
    told = facts(runs, [_figures(run, now) for run in runs], explained="Model")
    return filled_page(runs, now, told, charts_row(with_events(charts, runs, unit)), sections)


def _figures(run: FinetuneRecord, now: float) -> list[Figure]:
    settings, last, result = run.settings, run.metrics.steps[-1], run.result
    skipped = "no update skipped" if last.skipped_steps == 0 else f"{last.skipped_steps:,} updates skipped"
    events = event_counts(run)
    told = f"{skipped}{f', {events}' if events else ''}"
    # Steps that were done again after a rollback are not counted twice.
    examples = run.step * settings.train.global_batch
    best = "-" if run.best_loss is None else f"{run.best_loss:.4f}"
    figures = [
        ("State", state(run, settings.train.steps), last_logged(run, now)),
        ("Model", "weights drawn afresh" if settings.fresh_weights else settings.init_from, _shape(settings)),
        ("Task", settings.task.kind, f"text's loss beside it with weight {settings.task.language_model_weight:g}"),
        ("Trained on", f"{examples:,} examples", f"{run.step:,} steps, {told}"),
        ("Lowest validation loss", best, "" if run.best_loss is not None else "no look at a validation file"),
    ]
    if result is not None and result.files and result.files[-1].scores:
        part, score = result.files[-1], result.files[-1].scores[0]
        figures.append((f"{score.name} on the {part.part} file", f"{score.value:.4f}", _interval(score)))
    figures.append(("Training time", duration(float(run.training_seconds()[-1])), "looks and checkpoints left out"))
    return figures


def _shape(settings: FinetuneSettings) -> str:
    try:
        config = model_config(Path(settings.init_from))
    except BadInput:
        return "the folder it began from is gone"
    shape = "{n_layer} layers, {n_head} heads, width {n_embd}, context {n_positions:,}".format(**config)
    return f"{shape}; as {settings.init_from}" if settings.fresh_weights else shape


def _interval(score: ScoreRecord) -> str:
    if score.low is None or score.high is None:
        return "no interval is defined"
    return f"95% interval {score.low:.4f} to {score.high:.4f}"


def _score_charts(runs: Sequence[FinetuneRecord], unit: TimeUnit) -> list[Chart]:
    """Scores of the validation file: of one run all in one chart, of several a chart a score."""
    names = list(dict.fromkeys(name for run in runs for line in run.metrics.validation for name in line.scores))
    if not names:
        return []

    def values(run: FinetuneRecord, name: str) -> list[float]:
        return [float(line.scores.get(name, float("nan"))) for line in run.metrics.validation]

    if len(runs) == 1:
        curves = [look_curve(runs[0], unit, number, values(runs[0], name), name) for number, name in enumerate(names)]
        caption = "Of the validation file at each look; higher is better."
        return [curves_chart("Validation scores", caption, curves, "score", has_legend=True)]
    return [
        curves_chart(
            f"Validation {name}",
            "At each look; higher is better.",
            [look_curve(run, unit, n, values(run, name), name_of(runs, run, "")) for n, run in enumerate(runs)],
            name,
        )
        for name in names
    ]


def _scores(runs: Sequence[FinetuneRecord]) -> str:
    """A row a score of each file and run, beside always the commonest answer."""
    rows: list[list[str]] = []
    notes = []
    for run in runs:
        if run.result is None:
            notes.append(f"{run.label}: no scores yet; a fine-tuning scores its files when it is finished.")
            continue
        if not run.is_finished:
            notes.append(f"{run.label}: these scores are of an earlier end, at step {run.result.steps:,}.")
        if not run.result.files:
            notes.append(f"{run.label}: no validation and no test file, so no scores.")
        for part in run.result.files:
            constant = {score.name: score.value for score in part.most_frequent}
            for score in part.scores:
                interval = "-" if score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}"
                level = f"{constant[score.name]:.4f}" if score.name in constant else "-"
                own = [] if len(runs) == 1 else [run.label]
                rows.append([part.part, score.name, *own, f"{score.value:.4f}", interval, level, f"{part.examples:,}"])
    head = ["File", "Score", *([] if len(runs) == 1 else ["Run"])]
    head += ["Value", "95% interval", "Commonest answer", "Examples"]
    shown = table(head, rows, numbers=True) if rows else ""
    if rows:
        shown += (
            "<p>Commonest answer: what always giving the training file's most frequent class, or its mean, would get. "
            "A comparison with a bag of words is <code>benchmarks/finetune.py</code>.</p>"
        )
    return shown + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _data(run: FinetuneRecord, named: bool) -> str:
    task, result = run.settings.task, run.result
    counts: dict[str, str] = {}
    if result is not None:
        counts = {"training": f"{result.examples:,}", **{part.part: f"{part.examples:,}" for part in result.files}}
    files: list[tuple[str, Any]] = [("training", task.train), ("validation", task.validation), ("test", task.test)]
    rows = [[name, str(file), counts.get(name, "-")] for name, file in files if file]
    classes = ""
    if result is not None and result.classes and task.kind != "multiple_choice":
        classes = f"<p>{len(result.classes)} classes: {escape(', '.join(result.classes))}.</p>"
    chosen = ""
    if result is not None:
        chosen = f"<p>The exported model is that of step {result.model_step:,} of {result.steps:,}.</p>"
    return f"{heading(run, named)}{table(['Part', 'File', 'Examples'], rows)}{classes}{chosen}"
