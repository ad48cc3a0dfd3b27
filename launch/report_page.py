"""The report of pre-training as one HTML page that fetches nothing; all text in it is escaped."""

from collections.abc import Sequence
from html import escape

import numpy as np

from launch.report_charts import curve_charts, length_chart
from launch.report_data import RunRecord
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
    short,
    state,
    table,
)
from train.samples import SAMPLES_FILE

MOST_LOOKS = 10
"""Samples of looks that a page shows, spread over the run."""


def report_page(runs: Sequence[RunRecord], now: float, fewshot: Sequence[ModelResults] = ()) -> str:
    """The page of one run, or of several side by side.

    Args:
        now: seconds since 1970.
        fewshot: what models reached with examples in the prompt; without any, the page has no such part.
    """
    named = len(runs) > 1
    sections = [
        section("data", "Data", "".join(_data(run, named) for run in runs)),
        section("samples", "Samples", "".join(_samples(run, named) for run in runs)),
        *fewshot_section(fewshot),
        settings_section(runs, "train", "train"),
    ]
    told = facts(runs, [_figures(run, now) for run in runs], explained="Model")
    return filled_page(runs, now, told, charts_row(curve_charts(runs)), sections)


def _figures(run: RunRecord, now: float) -> list[Figure]:
    model, last = run.settings.model, run.metrics.steps[-1]
    shape = f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, block {model.block_size:,}"
    bits = "-" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}"
    parameters = run.parameters
    seconds = float(run.training_seconds()[-1])
    skipped = last.skipped_steps
    told = "no update skipped" if skipped == 0 else f"{skipped:,} updates skipped"
    events = event_counts(run)
    where = "whole held-out part" if run.is_finished else "at the last look"
    return [
        ("State", state(run, run.planned_steps), last_logged(run, now)),
        ("Model", "-" if parameters is None else f"{short(parameters)} parameters", shape),
        (
            "Trained on",
            f"{short(run.tokens)} tokens",
            f"{run.step:,} steps, {told}{f', {events}' if events else ''}",
        ),
        ("Held-out", f"{bits} bits per byte", where if run.bits_per_byte is not None else "nothing held out so far"),
        ("Last training loss", f"{last.loss:.4f}", "nats a token"),
        ("Training time", duration(seconds), "looks at held-out text and checkpoints left out"),
    ]


def _data(run: RunRecord, named: bool) -> str:
    title = heading(run, named)
    if run.data is None:
        return f'{title}<p class="note">The shards cannot be shown: {escape(run.data_fault)}</p>'
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
        f"{title}{table(head, rows, numbers=True)}"
        f"<p>Vocabulary of {manifest.vocab_size:,} tokens; shards <code>{escape(manifest.fingerprint)}</code>.</p>"
        f"{charts_row([chart] if chart else [])}"
        f"<details><summary>{len(manifest.sources):,} source files</summary><ul>{sources}{more_sources}</ul></details>"
    )


def _samples(run: RunRecord, named: bool) -> str:
    return heading(run, named) + _final_samples(run) + _look_samples(run, "h4" if named else "h3")


def _final_samples(run: RunRecord) -> str:
    result = run.result
    if result is None or not result.samples:
        why = "It asked for none." if run.is_finished else "A run draws its samples after its last step."
        told = "" if run.is_finished else "This run is not finished. "
        return f'<p class="note">No samples: {told}{why}</p>'
    stale = (
        ""
        if run.is_finished
        else f'<p class="note">This run is not finished: these are from its model at step {result.steps:,}, when it '
        "was set to end there.</p>"
    )
    texts = "".join(
        f"<li><blockquote lang=ko>{_sample(text, result.prompt)}</blockquote></li>" for text in result.samples
    )
    return f"{stale}<p>The prompt is in bold; {_how(run)}.</p><ol class=samples>{texts}</ol>"


def _how(run: RunRecord) -> str:
    drawn = run.settings.sampling
    if not drawn.do_sample:
        return "always the likeliest token"
    return f"temperature {drawn.temperature:g}, top_k {drawn.top_k}, top_p {drawn.top_p:g}, seed {drawn.seed}"


def _look_samples(run: RunRecord, level: str) -> str:
    """What the model made of the prompt as training went on, under a heading of that level."""
    count = len(run.samples)
    if not count:
        return ""
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_LOOKS)).round().astype(np.int64))
    losses = {line.step: line.held_out_loss for line in run.metrics.looks}
    items = []
    for sample in (run.samples[number] for number in chosen):
        loss = f", held-out loss {losses[sample.step]:.4f}" if sample.step in losses else ""
        items.append(
            f"<li><small>step {sample.step:,}, {short(sample.tokens)} tokens{loss}</small>"
            f"<blockquote lang=ko>{_sample(sample.text, sample.prompt)}</blockquote></li>"
        )
    left_out = "" if len(items) == count else f" {len(items)} of {count:,}; all are in {SAMPLES_FILE}."
    return (
        f"<{level}>As training went on</{level}><p>One at each look at held-out text; {_how(run)}.{left_out}</p>"
        f"<ol class=samples>{''.join(items)}</ol>"
    )


def _sample(text: str, prompt: str) -> str:
    if not text.startswith(prompt):
        return escape(text)
    return f"<b>{escape(prompt)}</b>{escape(text[len(prompt) :])}"
