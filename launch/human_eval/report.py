"""Show the results of a blind test: tables on the terminal, and a page with a figure that fetches nothing."""

from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
from rich.box import SIMPLE_HEAD
from rich.markup import escape as escape_markup
from rich.table import Table

from malmoi.atomic_io import write_atomic
from malmoi.console import table_console
from malmoi.errors import UserError
from malmoi.evaluation.human_eval.results import CHANCE, CONTROL, Interval, JudgeResults, WriterResult
from malmoi.launch.human_eval import TEMPLATES
from malmoi.launch.human_eval.words import RESULT_WORDS, ResultWords

NEUTRAL = "#808080"
ACCENT = "#3b82c4"


@dataclass(frozen=True)
class ResultsTable:
    """A table with a row a writer, its cells as text."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PagePart:
    """What the page says in one language."""

    words: ResultWords
    title: str
    accuracy: ResultsTable
    answers: ResultsTable
    notes: list[str]


def accuracy_table(results: JudgeResults, words: ResultWords) -> ResultsTable:
    """Return accuracy over raters, against chance and against the control."""
    rows = tuple(
        (
            _name(writer, words),
            str(len(writer.raters)),
            _percent(writer.accuracy),
            _interval(writer.interval, words),
            _p(writer.p_chance),
            "-" if writer.t_control is None else f"{writer.t_control:.2f}",
            _p(writer.p_control),
        )
        for writer in results.writers
    )
    return ResultsTable(words.accuracy_head, rows)


def answers_table(results: JudgeResults, words: ResultWords) -> ResultsTable:
    """Return the answers to each kind of text."""
    human_machine = results.human_decided - results.human_as_human
    undecided = results.human_ratings - results.human_decided
    people = (
        words.people,
        "",
        str(results.human_ratings),
        _share(undecided, results.human_ratings),
        words.of.format(part=human_machine, total=results.human_decided),
        _share(human_machine, results.human_decided),
        "",
    )
    return ResultsTable(words.answers_head, (people, *(_answers_row(writer, words) for writer in results.writers)))


def _answers_row(writer: WriterResult, words: ResultWords) -> tuple[str, ...]:
    return (
        _name(writer, words),
        str(writer.texts),
        str(writer.ratings),
        _percent(writer.cannot_tell),
        words.of.format(part=writer.recognized, total=writer.decided),
        _share(writer.recognized, writer.decided),
        _interval(writer.recognized_interval, words),
    )


def _name(writer: WriterResult, words: ResultWords) -> str:
    return words.control if writer.writer == CONTROL else writer.writer


def notes_of(results: JudgeResults, words: ResultWords) -> list[str]:
    """Return how to read the tables, and what they exclude."""
    agreement = results.agreement
    notes = [words.how_to_read]
    if agreement.kappa is None:
        notes.append(words.no_agreement)
    else:
        kappa = {"kappa": agreement.kappa, "pairs": agreement.pairs, "texts": agreement.texts}
        notes.append(words.agreement.format(**kappa))
    if results.excluded:
        notes.append(words.excluded.format(raters=results.excluded))
    if results.raters == 1:
        notes.append(words.one_rater)
    return notes


def print_results(results: JudgeResults) -> None:
    """Print the tables and notes."""
    console, words = table_console(), RESULT_WORDS["en"]
    for table in (accuracy_table(results, words), answers_table(results, words)):
        shown = Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(table.head):
            shown.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
        for row in table.rows:
            # A model folder may be named like rich's markup.
            shown.add_row(*map(escape_markup, row))
        console.print(shown)
    for note in notes_of(results, words):
        console.print(note, markup=False, soft_wrap=True)


def accuracy_figure(results: JudgeResults) -> go.Figure:
    """Return a figure of each writer's accuracy with its interval, each rater's, and the line of chance; the page's
    script gives it words in its reader's language."""
    shown = [writer for writer in results.writers if writer.accuracy is not None]
    names = [writer.writer for writer in shown]
    intervals = [writer.interval or Interval(writer.accuracy or 0.0, writer.accuracy or 0.0) for writer in shown]
    means = [writer.accuracy or 0.0 for writer in shown]
    above = [100 * (interval.high - mean) for interval, mean in zip(intervals, means, strict=True)]
    below = [100 * (mean - interval.low) for interval, mean in zip(intervals, means, strict=True)]
    raters = [(writer.writer, 100 * score.accuracy) for writer in shown for score in writer.raters]
    figure = go.Figure()
    figure.add_scatter(
        x=[name for name, _ in raters],
        y=[accuracy for _, accuracy in raters],
        mode="markers",
        marker={"size": 7, "color": NEUTRAL, "opacity": 0.5},
    )
    figure.add_scatter(
        x=names,
        y=[100 * mean for mean in means],
        error_y={
            "array": above,
            "arrayminus": below,
            "symmetric": False,
            "visible": any(above + below),
            "color": ACCENT,
        },
        mode="markers",
        marker={"size": 12, "color": ACCENT, "symbol": "diamond"},
        hovertemplate="%{x}: %{y:.1f}%<extra></extra>",
    )
    figure.add_hline(y=100 * CHANCE, line={"color": NEUTRAL, "dash": "dash", "width": 1})
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True}
    figure.update_layout(
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": NEUTRAL, "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={**axis, "type": "category"},
        yaxis={**axis, "range": [0, 104]},
    )
    return figure


def results_page(results: JudgeResults) -> str:
    """Return the page; its template escapes all text."""
    figure = plotly.io.to_html(
        accuracy_figure(results),
        include_plotlyjs=True,
        full_html=False,
        default_height="420px",
        config={"displayModeBar": False, "responsive": True},
        div_id="accuracy",
    )
    parts = {language: _part(results, words) for language, words in RESULT_WORDS.items()}
    return TEMPLATES.get_template("judge.results.html").render(parts=parts, figure=figure)


def _part(results: JudgeResults, words: ResultWords) -> PagePart:
    title = words.title_of_one if results.raters == 1 else words.title.format(raters=results.raters)
    tables = accuracy_table(results, words), answers_table(results, words)
    return PagePart(words, title, *tables, notes_of(results, words))


def write_page(results: JudgeResults, file: Path) -> Path:
    """Write the page and return its path.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomic(file, results_page(results).encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another place with --out") from error
    return file


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _share(part: int, total: int) -> str:
    return _percent(part / total if total else None)


def _interval(interval: Interval | None, words: ResultWords) -> str:
    return "-" if interval is None else words.interval.format(low=100 * interval.low, high=100 * interval.high)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
