"""The tables of the documentation, in Markdown, from what other scripts measured; nothing is trained.

    python benchmarks/tables.py learning [--runs benchmarks/results/learning.jsonl] [--write docs/learning.md]
    python benchmarks/tables.py results --run RUN --figures FOLDER... [--write docs/results.md]
    python benchmarks/tables.py baselines --figures FOLDER... [--write docs/results.md]

Prints them; --write also puts them between the page's two markers, and all else on the page stays. `learning` is from
the finished runs of benchmarks/learning.py, `results` from `malmoi fewshot --out RUN/fewshot` and from
`benchmarks/finetune.py --out FOLDER`, as `baselines` is. The tables of docs/performance.md are written by
benchmarks/run_all.py.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning_recipes import RUNS, Run, read_runs

from malmoi.evaluation.fewshot.results import Point, describe_fit, read_results

END = "<!-- end of tables -->"
LEAF = int | float | str | bool | None
OURS, BASE = "malmoi", "base"
RECIPES = (OURS, BASE, "nanogpt", "tutorial")
"""Recipes of their own; all others are changes to the base."""


def begin_marker(script: str) -> str:
    """Return the line before the tables of `benchmarks/SCRIPT`."""
    return f"<!-- tables: benchmarks/{script} -->"


def with_tables(page: str, script: str, tables: str) -> str:
    """Return `page` with `tables` between its markers, all else as it was.

    Raises:
        ValueError: it lacks a marker.
    """
    begin = begin_marker(script)
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"no line '{begin}' followed by '{END}'")
    return f"{before}{begin}\n\n{tables}\n\n{END}{after}"


def write_tables(page: Path, script: str, tables: str) -> None:
    """Replace the tables of a page."""
    page.write_text(with_tables(page.read_text(encoding="utf-8"), script, tables), encoding="utf-8")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table, a line each."""
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows)]


def figure_tables(figures: dict[str, Any], title: str = "") -> Iterator[str]:
    """Yield lines for all that `figures` hold, nested as they are, none left out but what is None or empty.

    Numbers by name go into one line, a list of like objects into a table with a row each, objects by name into one with
    their names as its first column.
    """
    inline = {name: value for name, value in figures.items() if _is_inline(value)}
    words = [f"{_words(name)} {_cell(value)}" for name, value in inline.items() if value not in (None, [])]
    if words:
        yield from (f"{title}{', '.join(words)}.", "")
    for name, value in figures.items():
        named = f"{title}{_words(name)}"
        if name in inline:
            continue
        if isinstance(value, dict) and not all(isinstance(each, dict) and _is_inline(each) for each in value.values()):
            yield from figure_tables(value, f"{named}: ")
            continue
        rows = value if isinstance(value, list) else [{name: key, **each} for key, each in value.items()]
        cells = [[_cell(row.get(column)) for column in rows[0]] for row in rows]
        yield from (f"{named}:", "", *markdown_table([_words(column) for column in rows[0]], cells), "")


def _is_inline(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return all(isinstance(each, LEAF) for each in value) if isinstance(value, list) else isinstance(value, LEAF)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(figure: Any) -> str:
    if isinstance(figure, dict):
        return f"({', '.join(f'{_words(name)} {_cell(each)}' for name, each in figure.items())})"
    if isinstance(figure, list):
        return " / ".join(map(_cell, figure))
    if isinstance(figure, bool) or not isinstance(figure, int | float):
        return "" if figure is None else str(figure)
    return f"{figure:,.0f}" if isinstance(figure, int) or abs(figure) >= 1000 else f"{figure:.4g}"


@dataclass(frozen=True)
class Group:
    """One recipe on one model size at one number of tokens and one learning rate, over seeds."""

    recipe: str
    size: str
    tokens: int
    rate: float
    is_sweep: bool
    """Of seeds that choose a learning rate, and are compared with nothing."""
    runs: tuple[Run, ...]
    """By seed, in order."""

    @property
    def bits(self) -> dict[int, float]:
        """Bits per byte by seed."""
        return {run.seed: run.bits_per_byte for run in self.runs}

    @property
    def median(self) -> float:
        """Of the bits per byte."""
        return statistics.median(self.bits.values())


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the runs by what only their seeds differ in; seeds that neither Malmoi nor the base had are a sweep's."""
    compared = {run.seed for run in runs if run.recipe in (OURS, BASE)}
    keyed: dict[tuple[str, str, int, float, bool], list[Run]] = {}
    for run in runs:
        key = (run.recipe, run.size, run.tokens, run.rate, run.seed not in compared)
        keyed.setdefault(key, []).append(run)
    return [Group(*key, tuple(sorted(of_key, key=lambda run: run.seed))) for key, of_key in keyed.items()]


def verdict(changes: Sequence[float]) -> str:
    """Return what differences in bits per byte, seed by seed, say: below zero is better."""
    if len(changes) > 1 and all(change < 0 for change in changes):
        return "helps"
    if len(changes) > 1 and all(change > 0 for change in changes):
        return "hurts"
    return "within the seeds' spread"


def recipes_table(groups: Iterable[Group]) -> list[str]:
    """Return a row a group of runs, by size and tokens."""
    columns = ("model", "recipe", "peak rate", "tokens", "steps", "bits per byte, median", "lowest to highest", "seeds")
    rows = []
    for group in sorted(groups, key=lambda each: (each.size, each.recipe, each.is_sweep, -each.tokens, each.rate)):
        name = f"{group.recipe}, sweep of rates" if group.is_sweep else group.recipe
        bits = group.bits.values()
        counts = (f"{group.rate:g}", f"{group.tokens:,}", f"{group.runs[0].steps:,}")
        spread = f"{min(bits):.3f} to {max(bits):.3f}"
        rows.append((group.size, name, *counts, f"{group.median:.3f}", spread, str(len(bits))))
    return markdown_table(columns, rows)


def changes_table(groups: Iterable[Group], base: Group) -> list[str]:
    """Return each change against `base`, the best first, and after them those that lack a seed of it.

    A change is set against the base seed by seed, since a seed's text and weights move both alike.
    """
    rows: list[tuple[float, Sequence[str]]] = []
    unfinished = []
    for group in groups:
        if not base.bits.keys() <= group.bits.keys():
            unfinished.append(f"{group.recipe} ({len(group.bits)} of {len(base.bits)} seeds)")
            continue
        changes = [group.bits[seed] - bits for seed, bits in base.bits.items()]
        middle, spread = statistics.median(changes), f"{min(changes):+.3f} to {max(changes):+.3f}"
        rows.append((middle, (group.recipe, f"{group.median:.3f}", f"{middle:+.3f}", spread, verdict(changes))))
    columns = ("change", "bits per byte, median", "change, median", "lowest to highest", "")
    lines = markdown_table(columns, [("none", f"{base.median:.3f}", "", "", ""), *(row for _, row in sorted(rows))])
    return lines + (["", f"Not finished: {'; '.join(unfinished)}."] if unfinished else [])


def learning_tables(runs: Sequence[Run]) -> str:
    """Return the recipes, then the changes to the base, at each size and number of tokens at which there are any."""
    groups = group_runs(runs)
    lines = recipes_table(group for group in groups if group.recipe in RECIPES)
    for base in [group for group in groups if group.recipe == BASE and not group.is_sweep]:
        changes = [
            group
            for group in groups
            if group.recipe not in RECIPES and (group.size, group.tokens) == (base.size, base.tokens)
        ]
        if changes:
            lines += ["", f"One change at a time: model {base.size}, {base.tokens:,} tokens.", ""]
            lines += changes_table(changes, base)
    return "\n".join(lines)


def _score(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:,.0f}"


def _point(point: Point | None) -> str:
    """Mean, and over several seeds its standard error."""
    if point is None or point.stderr is None:
        return _score(None if point is None else point.mean)
    return f"{_score(point.mean)} ± {_score(point.stderr)}"


def results_tables(run: Path, figures: Sequence[Path]) -> str:
    """Return the few-shot scores at each number of examples, and the fine-tuned ones beside simpler models'."""
    results = read_results(run / "fewshot")
    shots = sorted({run.shots for result in results for run in result.runs})
    rows = []
    for result in results:
        for metric in result.metrics:
            curve = {point.shots: point for point in result.curve(metric)}
            baseline = result.baseline(metric)
            levels = (_score(baseline.chance), _score(baseline.majority), str(result.documents))
            rows.append((result.task, metric, *(_point(curve.get(count)) for count in shots), *levels))
    columns = ("task", "score", *(f"{count} shots" for count in shots), "chance", "commonest", "documents")
    lines = ["### Without training", "", *markdown_table(columns, rows), "", "What did not fit the context:", ""]
    lines += [*(f"- {line}" for line in describe_fit(results)), "", "### Fine-tuned", ""]
    return "\n".join([*lines, *_figure_table(figures)])


def baseline_table(figures: Sequence[Path]) -> str:
    """Return the scores of what needs no pre-training."""
    return "\n".join(_figure_table(figures))


def _figure_table(figures: Sequence[Path]) -> list[str]:
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for folder in figures:
        sets |= json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    origins = list(next(iter(sets.values())))
    rows = []
    for name, by_origin in sets.items():
        for metric in (score["name"] for score in by_origin[origins[-1]]):
            found = [next((each for each in by_origin[origin] if each["name"] == metric), None) for origin in origins]
            rows.append((name, metric, *map(_with_interval, found)))
    return markdown_table(("data", "score", *origins), rows)


def _with_interval(score: dict[str, Any] | None) -> str:
    if score is None or score["low"] is None:
        return _score(None if score is None else score["value"])
    return f"{_score(score['value'])} ({_score(score['low'])} to {_score(score['high'])})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=("learning", "results", "baselines"))
    parser.add_argument("--runs", type=Path, default=RUNS, help="what benchmarks/learning.py wrote")
    parser.add_argument("--run", type=Path, help="folder of the finished run")
    parser.add_argument("--figures", type=Path, nargs="+", default=[], help="what benchmarks/finetune.py wrote to")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    if options.page == "learning":
        tables = learning_tables(list(read_runs(options.runs).values()))
    elif options.page == "baselines":
        tables = baseline_table(options.figures)
    elif options.run is None or not options.figures:
        parser.error("results needs --run and --figures")
    else:
        tables = results_tables(options.run, options.figures)
    print(tables)
    if options.write is not None:
        write_tables(options.write, f"tables.py {options.page}", tables)


if __name__ == "__main__":
    main()
