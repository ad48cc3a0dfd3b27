"""The tables of docs/results.md: what one trained model does without training on tasks, and with it.

    python benchmarks/results_tables.py --run RUN --figures FOLDER... [--write docs/results.md]

Reads what `malmoi fewshot --out RUN/fewshot` and `benchmarks/finetune.py --out FOLDER` left; trains nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page_tables import write_tables
from inference.fewshot_results import Point, TaskResult, describe_fit, read_results

SCRIPT = "results_tables.py"


def point(seen: Point | None) -> str:
    """Mean, and over several seeds its standard error."""
    if seen is None:
        return "-"
    return shown(seen.mean) if seen.stderr is None else f"{shown(seen.mean)} ± {shown(seen.stderr)}"


def shown(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:,.0f}"


def fewshot_table(results: Sequence[TaskResult]) -> list[str]:
    """A row a score: at each number of examples, chance and the commonest answer."""
    shots = sorted({run.shots for result in results for run in result.runs})
    lines = [
        "| task | score | " + " | ".join(f"{count} shots" for count in shots) + " | chance | commonest | documents |",
        "| --- | --- |" + " --- |" * (len(shots) + 3),
    ]
    for result in results:
        for metric in result.metrics:
            curve = {seen.shots: seen for seen in result.curve(metric)}
            baseline = result.baseline(metric)
            cells = [point(curve.get(count)) for count in shots]
            cells += [shown(baseline.chance), shown(baseline.majority), f"{result.documents}"]
            lines.append(f"| {result.task} | {metric} | " + " | ".join(cells) + " |")
    return lines


def finetune_table(figures: Sequence[Path]) -> list[str]:
    """A row a data set and score: the commonest answer, a bag of words, random weights, pre-trained ones."""
    sets = {}
    for folder in figures:
        sets.update(json.loads((folder / "figures.json").read_text(encoding="utf-8")))
    origins = list(next(iter(sets.values())))
    lines = ["| data | score | " + " | ".join(origins) + " |", "| --- | --- |" + " --- |" * len(origins)]
    for name, rows in sets.items():
        by_origin = {origin: {each["name"]: each for each in scores} for origin, scores in rows.items()}
        for metric in by_origin[origins[-1]]:
            cells = []
            for origin in origins:
                seen = by_origin[origin].get(metric)
                if seen is None:
                    cells.append("-")
                elif seen["low"] is None:
                    cells.append(shown(seen["value"]))
                else:
                    cells.append(f"{shown(seen['value'])} ({shown(seen['low'])} to {shown(seen['high'])})")
            lines.append(f"| {name} | {metric} | " + " | ".join(cells) + " |")
    return lines


def tables(run: Path, figures: Sequence[Path]) -> str:
    results = read_results(run / "fewshot")
    lines = ["### Without training", "", *fewshot_table(results), ""]
    lines += ["What did not fit the context:", "", *(f"- {line}" for line in describe_fit(results)), ""]
    lines += ["### Fine-tuned", "", *finetune_table(figures)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the finished run")
    parser.add_argument("--figures", type=Path, nargs="+", required=True, help="what benchmarks/finetune.py wrote to")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    made = tables(options.run, options.figures)
    print(made)
    if options.write is not None:
        write_tables(options.write, SCRIPT, made)


if __name__ == "__main__":
    main()
