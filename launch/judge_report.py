"""The results of a blind test: tables for the terminal, and a page with a figure that fetches nothing."""

from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import plotly.graph_objects as go
import plotly.io
from rich.box import SIMPLE_HEAD
from rich.table import Table

from configs.errors import BadInput
from configs.table_console import table_console
from data_prep.files import write_whole
from inference.judge_results import CHANCE, Interval, JudgeResults, WriterResult

NEUTRAL = "#808080"
ACCENT = "#3b82c4"


@dataclass(frozen=True)
class ResultsTable:
    """A row a writer, as text."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def accuracy_table(results: JudgeResults) -> ResultsTable:
    """Accuracy over raters, against chance and against the control."""
    head = ("writer", "raters", "accuracy", "95% interval", "p against 50%", "t to control", "p")
    rows = tuple(
        (
            writer.writer,
            str(len(writer.raters)),
            _percent(writer.accuracy),
            _interval(writer.interval),
            _p(writer.p_chance),
            "-" if writer.t_control is None else f"{writer.t_control:.2f}",
            _p(writer.p_control),
        )
        for writer in results.writers
    )
    return ResultsTable(head, rows)


def answers_table(results: JudgeResults) -> ResultsTable:
    """How the answers to each kind of text fell."""
    head = ("texts by", "texts", "answers", "cannot tell", "called a machine's", "share", "exact 95% interval")
    human_machine = results.human_decided - results.human_as_human
    undecided = results.human_ratings - results.human_decided
    people = (
        "people",
        "",
        str(results.human_ratings),
        _share(undecided, results.human_ratings),
        f"{human_machine} of {results.human_decided}",
        _share(human_machine, results.human_decided),
        "",
    )
    return ResultsTable(head, (people, *(_answers_row(writer) for writer in results.writers)))


def _answers_row(writer: WriterResult) -> tuple[str, ...]:
    return (
        writer.writer,
        str(writer.texts),
        str(writer.ratings),
        _percent(writer.cannot_tell),
        f"{writer.found} of {writer.decided}",
        _share(writer.found, writer.decided),
        _interval(writer.found_interval),
    )


def notes_of(results: JudgeResults) -> list[str]:
    """What the tables mean and what they leave out."""
    agreement = results.agreement
    notes = [
        "Accuracy: a rater's share right, people's texts and the writer's weighing the same, `cannot tell` left out, "
        "and the mean over raters; 50% is guessing. The nearer a model is to 50%, the less it is told from people."
    ]
    if agreement.kappa is None:
        notes.append("Agreement between raters: none to be had; it needs two who answered the same texts variously.")
    else:
        pairs = "pair" if agreement.pairs == 1 else "pairs"
        notes.append(
            f"Agreement between raters: Cohen's kappa with quadratic weights {agreement.kappa:.3f}, "
            f"the mean over {agreement.pairs} {pairs} with {agreement.texts:.1f} texts in common."
        )
    if results.left_out:
        notes.append(f"{results.left_out} raters found out too little of the control and are left out.")
    if results.raters == 1:
        notes.append("One rater: no interval over raters and no t-test; the exact interval takes answers as draws.")
    return notes


def print_results(results: JudgeResults) -> None:
    """Show the tables in the terminal."""
    console = table_console()
    for table in (accuracy_table(results), answers_table(results)):
        shown = Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(table.head):
            shown.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
        for row in table.rows:
            shown.add_row(*map(escape_markup, row))
        console.print(shown)
    for note in notes_of(results):
        console.print(note, markup=False, soft_wrap=True)


def escape_markup(text: str) -> str:
    """A model folder may be named like rich's markup."""
    from rich.markup import escape as escaped

    return escaped(text)


def accuracy_figure(results: JudgeResults) -> go.Figure:
    """Accuracy a writer with its interval, each rater as a small dot, and the line of guessing."""
    shown = [writer for writer in results.writers if writer.accuracy is not None]
    names = [writer.writer for writer in shown]
    intervals = [writer.interval or Interval(writer.accuracy or 0.0, writer.accuracy or 0.0) for writer in shown]
    means = [writer.accuracy or 0.0 for writer in shown]
    above = [100 * (interval.high - mean) for interval, mean in zip(intervals, means, strict=True)]
    below = [100 * (mean - interval.low) for interval, mean in zip(intervals, means, strict=True)]
    raters = [(writer.writer, 100 * score.accuracy) for writer in shown for score in writer.raters]
    figure = go.Figure()
    figure.add_scatter(
        name="raters",
        x=[name for name, _ in raters],
        y=[accuracy for _, accuracy in raters],
        mode="markers",
        marker={"size": 7, "color": NEUTRAL, "opacity": 0.5},
        hovertemplate="%{y:.1f}%<extra>a rater</extra>",
    )
    figure.add_scatter(
        name="mean and 95% interval",
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
        yaxis={**axis, "title": {"text": "accuracy, %"}, "range": [0, 104]},
    )
    return figure


def results_page(results: JudgeResults) -> str:
    """The page; all text in it is escaped."""
    figure = plotly.io.to_html(
        accuracy_figure(results),
        include_plotlyjs=True,
        full_html=False,
        default_height="420px",
        config={"displayModeBar": False, "responsive": True},
        div_id="accuracy",
    )
    template = (files("launch") / "templates" / "judge.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        raters=f"{results.raters} rater{'s' * (results.raters != 1)}",
        figure=figure,
        accuracy=_html_table(accuracy_table(results), "accuracy-table"),
        answers=_html_table(answers_table(results), "answers-table"),
        notes="".join(f"<p>{escape(note)}</p>" for note in notes_of(results)),
    )


def write_page(results: JudgeResults, file: Path) -> Path:
    """Write the page and return its path.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        write_whole(file, results_page(results).encode())
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror}); choose another place with --out") from error
    return file


def _html_table(table: ResultsTable, name: str) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _share(part: int, whole: int) -> str:
    return _percent(part / whole if whole else None)


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
