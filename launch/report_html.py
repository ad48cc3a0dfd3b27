"""What the reports of pre-training and fine-tuning share: the frame of the page, tables, figures, settings. All text
in it is escaped."""

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

from launch.report_charts import Chart, time_unit
from launch.report_data import TrainedRun
from launch.report_events import MOST_ROWS, event_rows
from launch.report_fewshot import ModelResults, fewshot_charts, fewshot_notes, fewshot_table
from train.run_folder import CONFIG_FILE

MINUTE, HOUR, DAY = 60, 3600, 86400
COLOURS = 6
Figure = tuple[str, str, str]
"""Name, value and explanation of what one wants to know first."""


def filled_page(runs: Sequence[TrainedRun], now: float, facts: str, curves: str, sections: Iterable[str]) -> str:
    """The page.

    Args:
        now: seconds since 1970.
        sections: what comes after the curves, as `section` makes them.
    """
    templates = files("launch") / "templates"
    return Template((templates / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(" · ".join(run.label for run in runs)),
        style=(templates / "report.css").read_text(encoding="utf-8"),
        script=(templates / "report.js").read_text(encoding="utf-8"),
        plotly=_compressed(plotly.offline.get_plotlyjs()),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        facts=facts,
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in _notes(runs)),
        time_unit=time_unit(runs).name,
        curves=colour_key([run.label for run in runs]) + curves + "".join(_events(run, len(runs) > 1) for run in runs),
        sections="\n".join(sections),
    )


def _compressed(script: str) -> str:
    """A script at 40% of its size, unpacked by the page itself; the same script gives the same text."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def section(name: str, title: str, body: str) -> str:
    """A part of the page under a heading of its own."""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>\n{body}\n</section>'


def state(run: TrainedRun, planned: int | None) -> str:
    """Whether a run is finished, or how far it is."""
    if run.is_finished:
        return "finished"
    whole = f" of {planned:,} ({100 * run.step / planned:.0f}%)" if planned else ""
    return f"not finished: step {run.step:,}{whole}"


def last_logged(run: TrainedRun, now: float) -> str:
    """How long ago a run logged its last line."""
    seconds = now - run.metrics_written
    for size, unit in ((DAY, "day"), (HOUR, "hour"), (MINUTE, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"last logged {count} {unit}{'s' if count > 1 else ''} before this report"
    return "last logged less than a minute before this report"


def duration(seconds: float) -> str:
    """Seconds for a reader."""
    if seconds >= HOUR:
        return f"{seconds / HOUR:,.1f} h"
    return f"{seconds / MINUTE:.1f} min" if seconds >= MINUTE else f"{seconds:.0f} s"


def short(count: float) -> str:
    """A count in three digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


def facts(runs: Sequence[TrainedRun], figures: Sequence[Sequence[Figure]], explained: str) -> str:
    """The figures of a run as tiles, or of several as a table.

    Args:
        explained: the figure whose explanation a table shows too.
    """
    if len(runs) > 1:
        rows = [
            [run.label, *(value + (f" ({more})" if name == explained else "") for name, value, more in own)]
            for run, own in zip(runs, figures, strict=True)
        ]
        return table(["Run", *(name for name, _, _ in figures[0])], rows)
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in figures[0]
    )
    return f'<dl class="facts">{items}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table whose first column heads its rows."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    kind = ' class="numbers"' if numbers else ""
    made = f"<table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{made}</div>'


def _notes(runs: Sequence[TrainedRun]) -> list[str]:
    return [
        f"{run.label}: {len(run.metrics.unreadable):,} lines of metrics.jsonl could not be read, the first of them "
        f"line {run.metrics.unreadable[0]:,}; they are left out."
        for run in runs
        if run.metrics.unreadable
    ]


def colour_key(labels: Sequence[str]) -> str:
    """Which colour is which label, once for all charts."""
    if len(labels) == 1:
        return ""
    entries = "".join(
        f"<li class=colour-{number % COLOURS}>{escape(label)}</li>" for number, label in enumerate(labels)
    )
    return f"<ul class=key>{entries}</ul>"


def charts_row(charts: Iterable[Chart]) -> str:
    """Charts beside one another, as wide as they ask to be."""
    return f'<div class="charts">{"".join(_chart(chart) for chart in charts)}</div>'


def _chart(chart: Chart) -> str:
    label = escape(f"{chart.title}. {chart.caption}", quote=True)
    return (
        f'<figure class="{chart.width}"><h3>{escape(chart.title)}</h3>'
        f'<div class="chart" role="img" aria-label="{label}">'
        f'<script type="application/json">{chart.as_json()}</script></div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def heading(run: TrainedRun, named: bool) -> str:
    """The run's label, where several stand below one another."""
    return f"<h3>{escape(run.label)}</h3>" if named else ""


def _events(run: TrainedRun, named: bool) -> str:
    count = len(run.metrics.events)
    if not count:
        return ""
    whose = f"{run.label}: " if named else ""
    shown = f", the latest {MOST_ROWS} shown" if count > MOST_ROWS else ""
    rows = table(["Event", "At step", "Tokens so far", "What happened"], event_rows(run))
    return f"<details><summary>{escape(whose)}{count:,} restarts and rollbacks{shown}</summary>{rows}</details>"


def fewshot_section(models: Sequence[ModelResults]) -> list[str]:
    """The tasks with examples in the prompt, where there are results."""
    if not models:
        return []
    made = fewshot_table(models)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in fewshot_notes(models))
    body = (
        f"{colour_key([model.label for model in models])}{charts_row(fewshot_charts(models))}"
        f"{table(made.head, made.rows, numbers=True)}{notes}"
    )
    return [section("fewshot", "Tasks with examples in the prompt", body)]


def settings_section(runs: Sequence[TrainedRun], command: str, module: str) -> str:
    """The settings of all runs, what differs, and the command that repeats each.

    Args:
        command: of `malmoi`.
        module: what a launcher starts in its place.
    """
    body = _differences(runs) + "".join(_settings(run, len(runs) > 1, command, module) for run in runs)
    return section("settings", "Settings", body)


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): str(settings)}
    flat: dict[str, str] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.")
    return flat


def _differences(runs: Sequence[TrainedRun]) -> str:
    if len(runs) < 2:
        return ""
    flat = [_flat(yaml.safe_load(run.settings_text)) for run in runs]
    names = [name for name in dict.fromkeys(name for own in flat for name in own) if name != "run"]
    rows = [[name, *(own.get(name, "-") for own in flat)] for name in names if len({own.get(name) for own in flat}) > 1]
    if not rows:
        return "<p>The runs have the same settings.</p>"
    return f"<h3>What differs</h3>{table(['Setting', *(run.label for run in runs)], rows)}"


def _settings(run: TrainedRun, named: bool, command: str, module: str) -> str:
    words = f"malmoi {command} --config {shlex.quote(str(run.folder / CONFIG_FILE))} --run NEW_FOLDER"
    ranks = run.environment.get("ranks", 1)
    launched = (
        f" This run had {escape(str(ranks))} ranks; any number gives the same losses to rounding, with "
        f"<code>accelerate launch ... -m {module}</code> in place of <code>malmoi {command}</code>."
        if ranks != 1
        else ""
    )
    environment = table(["Environment", ""], [[name, str(value)] for name, value in run.environment.items()])
    return (
        f"{heading(run, named)}<p>This repeats the run.{launched}</p><pre>{escape(words)}</pre>"
        f"<details><summary>config.yaml</summary><pre>{escape(run.settings_text)}</pre></details>"
        f"{environment if run.environment else ''}"
    )
