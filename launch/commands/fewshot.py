"""`malmoi fewshot`: options in, a table and JSON out."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from malmoi.configs.commands import FewshotOptions
from malmoi.console import table_console
from malmoi.errors import EXIT_DONE, require_options
from malmoi.evaluation.fewshot.results import Point, TaskResult, describe_fit, score_text
from malmoi.inference.model_files import check_model_files
from malmoi.launch.commands.options import optional_packages, parse_with_plugins
from malmoi.lazy_imports import fast_imports


def fewshot(argv: Sequence[str]) -> int:
    """Evaluate a model on few-shot tasks and print a row a metric."""
    options = parse_with_plugins(
        FewshotOptions,
        argv,
        "malmoi fewshot",
        "Evaluate a causal language model on tasks with none, one or several examples in the prompt.",
        lists=("tasks", "shots", "seeds"),
    )
    require_options("fewshot", model=bool(options.model), tasks=bool(options.tasks), out=bool(options.out))
    require_options("fewshot", shots=bool(options.shots), seeds=bool(options.seeds))
    check_model_files(Path(options.model))
    with optional_packages("eval", "lm_eval", "sacrebleu", "datasets", "scipy", "sklearn"), fast_imports():
        from malmoi.evaluation.fewshot.run import results_as_dict, run_fewshot

    stderr = Console(stderr=True, highlight=False)
    with stderr.status("loading") as status:
        results = list(run_fewshot(options, status.update, partial(stderr.print, markup=False, soft_wrap=True)))
    if options.json:
        print(json.dumps(results_as_dict(results), ensure_ascii=False))
        return EXIT_DONE
    console = table_console()
    console.print(results_table(results))
    for note in describe_fit(results):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return EXIT_DONE


def results_table(results: Sequence[TaskResult]) -> Table:
    """Return a row a metric: its mean at each number of examples, and for comparison chance and the majority answer."""
    shots = sorted({run.shots for result in results for run in result.runs})
    table = Table(title=results[0].model, title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
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
                *(_point_text(points.get(count)) for count in shots),
                _number(baseline.chance),
                _number(baseline.majority),
                f"{result.documents:,}" if number == 0 else "",
            )
    return table


def _point_text(point: Point | None) -> str:
    if point is None:
        return ""
    return _number(point.mean) + ("" if point.stderr is None else f" ±{_number(point.stderr)}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return score_text(value)
