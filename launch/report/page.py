"""The report as one HTML page that fetches nothing; the templates escape all text in it."""

import base64
import gzip
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.offline
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from malmoi.launch.report.charts import EVENTS, TrainingCharts, length_chart
from malmoi.launch.report.fewshot import FewshotSection
from malmoi.launch.report.reliability import reliability_charts
from malmoi.launch.report.rows import prediction_rows
from malmoi.launch.report.runs import FinetuneRun, PretrainRun, Run, validation_note
from malmoi.train.finetune_result import baseline_names, baseline_scores, score_of
from malmoi.train.metrics.sample_log import EvalSample

MINUTE, HOUR, DAY = 60, 3600, 86400
MAX_SAMPLES = 10
"""Samples of evaluations shown, spread over the run."""
HF_SHAPE = (
    (("n_layer", "num_hidden_layers"), "{} layers"),
    (("n_head", "num_attention_heads"), "{} heads"),
    (("n_embd", "hidden_size"), "hidden size {}"),
    (("n_positions", "max_position_embeddings"), "context {:,}"),
)
"""Keys of a model folder's configuration, GPT-2's and other families', and what they say."""


@dataclass(frozen=True)
class Fact:
    """What one wants to know first of a run."""

    name: str
    value: str
    note: str = ""


def report_page(
    runs: Sequence[PretrainRun] | Sequence[FinetuneRun], now: float, fewshot: FewshotSection | None = None
) -> str:
    """Return the page of one run, or of several of one kind side by side.

    Args:
        now: seconds since 1970.
        fewshot: few-shot results; without any, the page has no such section.
    """
    environment = Environment(
        loader=PackageLoader("malmoi.launch", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"count": "{:,}".format, "short": short_count, "shell": lambda path: shlex.quote(str(path))}
    environment.filters["score"] = lambda value: "-" if value is None else f"{value:.4f}"
    training = TrainingCharts(runs)
    tuned = [run.result for run in runs if isinstance(run, FinetuneRun) and run.result is not None]
    baselines = list(dict.fromkeys(name for result in tuned for name in baseline_names(result)))
    kind = "finetune" if isinstance(runs[0], FinetuneRun) else "pretrain"
    return environment.get_template(f"report.{kind}.html").render(
        runs=runs,
        facts=[_facts(run, now) for run in runs],
        charts=training.charts(),
        time_unit=training.time_unit,
        length_chart=length_chart,
        eval_samples=eval_samples,
        prediction_rows=prediction_rows,
        reliability_charts=reliability_charts,
        score_of=score_of,
        baseline_scores=baseline_scores,
        baselines=baselines,
        differences=setting_differences(runs),
        validation_note=validation_note([run for run in runs if isinstance(run, PretrainRun)]),
        fewshot=fewshot,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        # Gzip makes it 40% as large; without a time in it, equal runs give equal pages.
        plotly=base64.b64encode(gzip.compress(plotly.offline.get_plotlyjs().encode(), mtime=0)).decode(),
    )


def _facts(run: PretrainRun | FinetuneRun, now: float) -> list[Fact]:
    planned, last = run.planned_steps, run.metrics.steps[-1]
    progress = f" of {planned:,} ({100 * run.step / planned:.0f}%)" if planned else ""
    state = "finished" if run.is_finished else f"not finished: step {run.step:,}{progress}"
    skipped = f"{last.skipped_steps:,} skipped" if last.skipped_steps else "none skipped"
    counts = {kind: sum(event.event == kind for event in run.metrics.events) for kind in EVENTS}
    events = [f"{count:,} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
    steps = ", ".join([f"{run.step:,} steps", skipped, *events])
    return [
        Fact("State", state, f"last logged {duration(now - run.last_write)} before this report"),
        *(_pretrain_facts(run, steps) if isinstance(run, PretrainRun) else _finetune_facts(run, steps)),
        Fact("Training time", duration(float(run.training_seconds()[-1])), "without evaluations and checkpoints"),
    ]


def _pretrain_facts(run: PretrainRun, steps: str) -> list[Fact]:
    model, bits = run.settings.model, run.bits_per_byte
    shape = f"{model.n_layer} layers, {model.n_head} heads, hidden size {model.n_embd}, context {model.block_size:,}"
    shape += "" if run.vocab_size is None else f", vocabulary {run.vocab_size:,}"
    parameters = "-" if run.parameters is None else f"{short_count(run.parameters)} parameters"
    scope = "complete validation split" if run.is_finished else "last evaluation"
    return [
        Fact("Model", parameters, f"{model.architecture}, {shape}"),
        Fact("Trained on", f"{short_count(run.tokens_seen)} tokens", steps),
        Fact(
            "Validation",
            "-" if bits is None else f"{bits:.4f} bits per byte",
            "no evaluation so far" if bits is None else scope,
        ),
        Fact("Last training loss", f"{run.metrics.steps[-1].loss:.4f}", "nats per token"),
    ]


def _finetune_facts(run: FinetuneRun, steps: str) -> list[Fact]:
    settings = run.settings
    shape = _hf_shape(Path(settings.init_from))
    best = min((record.loss for record in run.metrics.task_vals), default=None)
    score = Fact("Score", "-", "there is none before the run is finished")
    if run.result is not None and run.result.files and run.result.files[-1].scores:
        part, first = run.result.files[-1].part, run.result.files[-1].scores[0]
        interval = None if first.low is None or first.high is None else (first.low, first.high)
        note = "no interval is defined" if interval is None else "95% interval {:.4f} to {:.4f}".format(*interval)
        score = Fact("Score", f"{part} {first.name} {first.value:.4f}", note)
    return [
        Fact("Model", settings.init_from, f"{shape}; random weights" if settings.random_init else shape),
        Fact("Task", settings.task.kind, f"language modeling loss weight {settings.task.lm_loss_weight:g}"),
        # By the step: steps that were done again after a rollback do not count twice.
        Fact("Trained on", f"{run.step * settings.train.global_batch_size:,} examples", steps),
        Fact(
            "Lowest validation loss",
            "-" if best is None else f"{best:.4f}",
            "no evaluation so far" if best is None else "task alone, in the training's precision",
        ),
        score,
    ]


def _hf_shape(folder: Path) -> str:
    """The shape of a model folder, as far as its configuration names it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its folder is gone"
    return ", ".join(text.format(config[name]) for names, text in HF_SHAPE for name in names if name in config)


def eval_samples(run: PretrainRun) -> list[tuple[EvalSample, float | None]]:
    """Return at most `MAX_SAMPLES` samples of evaluations, spread over the run, each with the validation loss."""
    losses = {record.step: record.loss for record in run.metrics.vals}
    count = len(run.samples)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_SAMPLES)).round().astype(np.int64))
    return [(run.samples[number], losses.get(run.samples[number].step)) for number in chosen]


def setting_differences(runs: Sequence[Run]) -> list[list[str]]:
    """Return each setting that differs between the runs, with its value in each; the run folder is left out.

    The vocabulary is the tokenizer's own. How a tokenizer is trained says nothing of one that was given.
    """
    flat = [_flat(yaml.safe_load(run.config)) for run in runs]
    for run, own in zip(runs, flat, strict=True):
        if isinstance(run, PretrainRun):
            if run.settings.tokenizer.path is not None or run.settings.init_from is not None:
                own |= {name: "-" for name in own if name.startswith("tokenizer.") and name != "tokenizer.path"}
            own |= {} if run.vocab_size is None else {"tokenizer.vocab_size": str(run.vocab_size)}
    names = [name for name in dict.fromkeys(name for own in flat for name in own) if name != "run"]
    return [[name, *(own.get(name, "-") for own in flat)] for name in names if len({own.get(name) for own in flat}) > 1]


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): str(settings)}
    flat: dict[str, str] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.")
    return flat


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for size, unit in ((2 * DAY, "days"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= size:
            return f"{seconds / min(size, DAY):,.1f} {unit}"
    return f"{seconds:.0f} s"


def short_count(count: float) -> str:
    """Return a count in three digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
