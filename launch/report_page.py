"""The report as one HTML page that fetches nothing; all text in it is escaped."""

import base64
import gzip
import shlex
import time
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import plotly.offline
import yaml

from launch.report_charts import Chart, curve_charts, length_chart, time_unit
from launch.report_data import RunRecord
from launch.report_fewshot import ModelResults, fewshot_charts, fewshot_notes, fewshot_table

MINUTE, HOUR, DAY = 60, 3600, 86400
COLOURS = 6


def report_page(runs: Sequence[RunRecord], now: float, fewshot: Sequence[ModelResults] = ()) -> str:
    """The page of one run, or of several side by side.

    Args:
        now: seconds since 1970.
        fewshot: what models reached with examples in the prompt; without any, the page has no such part.
    """
    templates = files("launch") / "templates"
    title = " · ".join(run.label for run in runs)
    return Template((templates / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(templates / "report.css").read_text(encoding="utf-8"),
        script=(templates / "report.js").read_text(encoding="utf-8"),
        plotly=_compressed(plotly.offline.get_plotlyjs()),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        facts=_facts(runs[0], now) if len(runs) == 1 else _comparison(runs, now),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in _notes(runs)),
        time_unit=time_unit(runs).name,
        curves=_key(runs) + _charts(curve_charts(runs)),
        data="".join(_data(run, len(runs) > 1) for run in runs),
        samples="".join(_samples(run, len(runs) > 1) for run in runs),
        fewshot=_fewshot(fewshot),
        settings=_differences(runs) + "".join(_settings(run, len(runs) > 1) for run in runs),
    )


def _compressed(script: str) -> str:
    """A script at 40% of its size, unpacked by the page itself; the same script gives the same text."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _state(run: RunRecord) -> str:
    if run.is_finished:
        return "finished"
    planned = run.planned_steps
    whole = f" of {planned:,} ({100 * run.step / planned:.0f}%)" if planned else ""
    return f"not finished: step {run.step:,}{whole}"


def _ago(seconds: float) -> str:
    for size, unit in ((DAY, "day"), (HOUR, "hour"), (MINUTE, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} before this report"
    return "less than a minute before this report"


def _duration(seconds: float) -> str:
    if seconds >= HOUR:
        return f"{seconds / HOUR:,.1f} h"
    return f"{seconds / MINUTE:.1f} min" if seconds >= MINUTE else f"{seconds:.0f} s"


def _short(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


def _figures(run: RunRecord, now: float) -> list[tuple[str, str, str]]:
    """Name, value and explanation of what one wants to know first."""
    model, last = run.settings.model, run.metrics.steps[-1]
    shape = f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, block {model.block_size:,}"
    bits = "-" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}"
    parameters = run.parameters
    seconds = float(run.training_seconds()[-1])
    skipped = last.skipped_steps
    none_skipped = "no update skipped" if skipped == 0 else f"{skipped:,} updates skipped"
    where = "whole held-out part" if run.is_finished else "at the last look"
    return [
        ("State", _state(run), f"last logged {_ago(now - run.metrics_written)}"),
        ("Model", "-" if parameters is None else f"{_short(parameters)} parameters", shape),
        ("Trained on", f"{_short(run.tokens)} tokens", f"{run.step:,} steps, {none_skipped}"),
        ("Held-out", f"{bits} bits per byte", where if run.bits_per_byte is not None else "nothing held out so far"),
        ("Last training loss", f"{last.loss:.4f}", "nats a token"),
        ("Training time", _duration(seconds), "looks at held-out text and checkpoints left out"),
    ]


def _facts(run: RunRecord, now: float) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in _figures(run, now)
    )
    return f'<dl class="facts">{items}</dl>'


def _comparison(runs: Sequence[RunRecord], now: float) -> str:
    figures = [_figures(run, now) for run in runs]
    rows = [
        [run.label, *(value + (f" ({more})" if name == "Model" else "") for name, value, more in own)]
        for run, own in zip(runs, figures, strict=True)
    ]
    return _table(["Run", *(name for name, _, _ in figures[0])], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table whose first column heads its rows."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    kind = ' class="numbers"' if numbers else ""
    table = f"<table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _notes(runs: Sequence[RunRecord]) -> list[str]:
    return [
        f"{run.label}: {len(run.metrics.unreadable):,} lines of metrics.jsonl could not be read, the first of them "
        f"line {run.metrics.unreadable[0]:,}; they are left out."
        for run in runs
        if run.metrics.unreadable
    ]


def _key(runs: Sequence[RunRecord]) -> str:
    """Which colour is which run, once for all charts."""
    return _colour_key([run.label for run in runs])


def _colour_key(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return ""
    entries = "".join(
        f"<li class=colour-{number % COLOURS}>{escape(label)}</li>" for number, label in enumerate(labels)
    )
    return f"<ul class=key>{entries}</ul>"


def _charts(charts: Iterable[Chart]) -> str:
    return f'<div class="charts">{"".join(_chart(chart) for chart in charts)}</div>'


def _chart(chart: Chart) -> str:
    label = escape(f"{chart.title}. {chart.caption}", quote=True)
    return (
        f'<figure class="{chart.width}"><h3>{escape(chart.title)}</h3>'
        f'<div class="chart" role="img" aria-label="{label}">'
        f'<script type="application/json">{chart.as_json()}</script></div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _heading(run: RunRecord, named: bool) -> str:
    return f"<h3>{escape(run.label)}</h3>" if named else ""


def _data(run: RunRecord, named: bool) -> str:
    heading = _heading(run, named)
    if run.data is None:
        return f'{heading}<p class="note">The shards cannot be shown: {escape(run.data_fault)}</p>'
    manifest = run.data.manifest
    rows = []
    for name, split in (("training", manifest.train), ("held-out", manifest.held_out)):
        counts = split.counts
        a_token = f"{counts.bytes / counts.tokens:.2f}" if counts.tokens else "-"
        a_document = f"{counts.tokens / counts.documents:,.1f}" if counts.documents else "-"
        plain = (counts.documents, counts.tokens, counts.bytes, counts.characters)
        rows.append([name, *(f"{count:,}" for count in plain), a_token, a_document])
    head = ["Split", "Documents", "Tokens", "Bytes", "Characters", "Bytes a token", "Tokens a document"]
    sources = "".join(
        f"<li>{escape(source.name)} <small>{source.bytes:,} bytes</small></li>" for source in manifest.sources[:20]
    )
    more = len(manifest.sources) - 20
    more_sources = f"<li>and {more:,} more</li>" if more > 0 else ""
    chart = length_chart(run)
    return (
        f"{heading}{_table(head, rows, numbers=True)}"
        f"<p>Vocabulary of {manifest.vocab_size:,} tokens; shards <code>{escape(manifest.fingerprint)}</code>.</p>"
        f"{_charts([chart] if chart else [])}"
        f"<details><summary>{len(manifest.sources):,} source files</summary><ul>{sources}{more_sources}</ul></details>"
    )


def _samples(run: RunRecord, named: bool) -> str:
    heading, result = _heading(run, named), run.result
    if result is None or not result.samples:
        why = "It asked for none." if run.is_finished else "A run draws its samples after its last step."
        state = "" if run.is_finished else "This run is not finished. "
        return f'{heading}<p class="note">No samples: {state}{why}</p>'
    stale = (
        ""
        if run.is_finished
        else f'<p class="note">This run is not finished: these are from its model at step {result.steps:,}, when it '
        "was set to end there.</p>"
    )
    texts = "".join(
        f"<li><blockquote lang=ko>{_sample(text, result.prompt)}</blockquote></li>" for text in result.samples
    )
    drawn = run.settings.sampling
    how = f"temperature {drawn.temperature:g}, top_k {drawn.top_k}, top_p {drawn.top_p:g}, seed {drawn.seed}"
    return f"{heading}{stale}<p>The prompt is in bold; {how}.</p><ol class=samples>{texts}</ol>"


def _sample(text: str, prompt: str) -> str:
    if not text.startswith(prompt):
        return escape(text)
    return f"<b>{escape(prompt)}</b>{escape(text[len(prompt) :])}"


def _fewshot(models: Sequence[ModelResults]) -> str:
    if not models:
        return ""
    table = fewshot_table(models)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in fewshot_notes(models))
    return (
        '<section aria-labelledby="fewshot"><h2 id="fewshot">Tasks with examples in the prompt</h2>'
        f"{_colour_key([model.label for model in models])}{_charts(fewshot_charts(models))}"
        f"{_table(table.head, table.rows, numbers=True)}{notes}</section>"
    )


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): str(settings)}
    flat: dict[str, str] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.")
    return flat


def _differences(runs: Sequence[RunRecord]) -> str:
    if len(runs) < 2:
        return ""
    flat = [_flat(yaml.safe_load(run.settings_text)) for run in runs]
    names = [name for name in dict.fromkeys(name for own in flat for name in own) if name != "run"]
    rows = [[name, *(own.get(name, "-") for own in flat)] for name in names if len({own.get(name) for own in flat}) > 1]
    if not rows:
        return "<p>The runs have the same settings.</p>"
    return f"<h3>What differs</h3>{_table(['Setting', *(run.label for run in runs)], rows)}"


def _settings(run: RunRecord, named: bool) -> str:
    config = run.folder / "config.yaml"
    command = f"malmoi train --config {shlex.quote(str(config))} --run NEW_FOLDER"
    ranks = run.environment.get("ranks", 1)
    launched = (
        f" This run had {escape(str(ranks))} ranks; any number gives the same losses to rounding, with "
        "<code>accelerate launch ... -m train</code> in place of <code>malmoi train</code>."
        if ranks != 1
        else ""
    )
    environment = _table(["Environment", ""], [[name, str(value)] for name, value in run.environment.items()])
    return (
        f"{_heading(run, named)}<p>This repeats the run.{launched}</p><pre>{escape(command)}</pre>"
        f"<details><summary>config.yaml</summary><pre>{escape(run.settings_text)}</pre></details>"
        f"{environment if run.environment else ''}"
    )
