"""`malmoi fewshot`: options in, a table and JSON out."""

import json
from collections.abc import Sequence
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from configs.command_line import parse_settings
from configs.commands import FewshotOptions
from configs.errors import EXIT_DONE, BadInput, require_options
from configs.quick_imports import quick_imports
from configs.table_console import table_console
from inference.fewshot_results import Point, TaskResult, describe_fit


def fewshot(argv: Sequence[str]) -> int:
    """Put tasks to a model and print a row a score."""
    options = parse_settings(
        FewshotOptions,
        argv,
        "malmoi fewshot",
        "Put tasks to a causal language model with none, one or several examples in the prompt.",
        lists=("tasks", "shots", "seeds"),
    )
    require_options("fewshot", model=bool(options.model), tasks=bool(options.tasks), out=bool(options.out))
    require_options("fewshot", shots=bool(options.shots), seeds=bool(options.seeds))
    try:
        with quick_imports():
            from inference.fewshot import results_as_dict, run_fewshot
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is not installed; install it with `pip install 'malmoi[eval]'`") from error

    told = Console(stderr=True, highlight=False)
    results = []
    with told.status("loading") as status:
        for result in run_fewshot(options, status.update, partial(told.print, markup=False, soft_wrap=True)):
            results.append(result)
    if options.json:
        print(json.dumps(results_as_dict(results), ensure_ascii=False))
        return EXIT_DONE
    console = table_console()
    console.print(results_table(results))
    for note in describe_fit(results):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return EXIT_DONE


def results_table(results: Sequence[TaskResult]) -> Table:
    """A row a score: its mean at each number of examples, what chance and the majority answer get, and documents."""
    shots = sorted({run.shots for result in results for run in result.runs})
    table = Table(title=results[0].model, title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("score", no_wrap=True)
    for count in shots:
        table.add_column(f"{count} shot" if count == 1 else f"{count} shots", justify="right", no_wrap=True)
    for name in ("chance", "majority", "documents"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        for number, metric in enumerate(result.metrics):
            points = {point.shots: point for point in result.curve(metric)}
            baseline = result.baseline(metric)
            table.add_row(
                result.task if number == 0 else "",
                metric,
                *(_shown(points.get(count)) for count in shots),
                _number(baseline.chance),
                _number(baseline.majority),
                f"{result.documents:,}" if number == 0 else "",
            )
    return table


def _shown(point: Point | None) -> str:
    if point is None:
        return ""
    return _number(point.mean) + ("" if point.stderr is None else f" ±{_number(point.stderr)}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
