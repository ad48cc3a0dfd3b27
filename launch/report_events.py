"""Restarts and rollbacks in a report: upright lines through the charts, marks on the loss, and a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.report_curves import Curve, plain_numbers
from launch.report_data import TrainedRun
from train.metrics import EventMetrics

SYMBOLS = {"restart": "triangle-up", "rollback": "triangle-down"}
DASHES = {"restart": "dot", "rollback": "dash"}
MOST_ROWS = 40


def event_lines(runs: Sequence[TrainedRun], seconds_a_unit: int) -> list[dict[str, Any]]:
    """Upright lines for the page's script: where each stands along each axis, its dash and, of several runs, its
    colour."""
    lines: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        tokens, time, steps = _places(run, run.metrics.events, seconds_a_unit)
        for place, event in enumerate(run.metrics.events):
            x = {"tokens": tokens[place], "time": time[place], "steps": steps[place]}
            own = {"colour": number} if len(runs) > 1 else {}
            values = plain_numbers(np.array(list(x.values())))
            lines.append({"x": dict(zip(x, values, strict=True)), "dash": DASHES.get(event.event, "dot"), **own})
    return lines


def event_curves(run: TrainedRun, seconds_a_unit: int, colour: int, prefix: str) -> list[Curve]:
    """Marks at the loss as it was, a curve a kind of event, each telling what happened."""
    curves = []
    losses = np.array([line.loss for line in run.metrics.steps], dtype=np.float64)
    logged = np.array([line.tokens for line in run.metrics.steps], dtype=np.float64)
    known = np.isfinite(losses)
    for kind, symbol in SYMBOLS.items():
        events = [event for event in run.metrics.events if event.event == kind]
        if not events or not known.any():
            continue
        tokens, time, steps = _places(run, events, seconds_a_unit)
        values = np.interp(tokens, logged[known], losses[known])
        texts = tuple(event.text.replace("<", "&lt;") for event in events)
        name = f"{prefix} {kind}".strip()
        curves.append(Curve(name, colour, tokens, time, steps, values, symbol=symbol, texts=texts))
    return curves


def event_rows(run: TrainedRun) -> list[tuple[str, ...]]:
    """Kind, step, tokens and what happened, the latest `MOST_ROWS`."""
    return [
        (event.event, f"{event.step:,}", f"{event.tokens:,}", event.text) for event in run.metrics.events[-MOST_ROWS:]
    ]


def event_counts(run: TrainedRun) -> str:
    """How often a run was started again and went back; empty where it never was."""
    counts = [(sum(event.event == kind for event in run.metrics.events), kind) for kind in SYMBOLS]
    return ", ".join(f"{count:,} {kind}{'s' if count > 1 else ''}" for count, kind in counts if count)


def _places(
    run: TrainedRun, events: Sequence[EventMetrics], seconds_a_unit: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Tokens, time and steps of events. Tokens alone never go back, so they tell the time."""
    tokens = np.array([event.tokens for event in events], dtype=np.float64)
    logged = np.array([0, *(line.tokens for line in run.metrics.steps)], dtype=np.float64)
    time = np.interp(tokens, logged, [0.0, *run.training_seconds()]) / seconds_a_unit
    return tokens, time, np.array([event.step for event in events], dtype=np.float64)
