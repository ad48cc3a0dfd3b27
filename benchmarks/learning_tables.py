"""The tables of docs/learning.md, from the finished runs of benchmarks/learning.py.

    python benchmarks/learning_tables.py [--runs benchmarks/results/learning.jsonl] [--write docs/learning.md]

Nothing is trained. Prints the tables; with --write they also replace what stands between the page's markers, and
all else on it stays. A change to the base is set against it seed by seed, since a seed's text and weights move both
alike; it helps or hurts where all seeds say so, and not otherwise. Changes that lack a seed of the base are listed as
unfinished and get no verdict.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page_tables import write_tables

SCRIPT = "learning_tables.py"
OURS, BASE = "malmoi", "base"
SWEEP = ", sweep of rates"


@dataclass(frozen=True)
class Finished:
    """A line of the runs' file."""

    recipe: str
    size: str
    seed: int
    tokens: int
    rate: float
    bits_per_byte: float
    seconds: float
    steps: int


@dataclass(frozen=True)
class Group:
    """One recipe on one size at one count of tokens and one rate, over seeds."""

    recipe: str
    size: str
    tokens: int
    rate: float
    steps: int
    bits: tuple[tuple[int, float], ...]
    """By seed, in its order."""

    @property
    def by_seed(self) -> dict[int, float]:
        return dict(self.bits)

    @property
    def values(self) -> list[float]:
        return [bits for _, bits in self.bits]

    def cells(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{statistics.median(self.values):.3f} | {low:.3f} to {high:.3f} | {len(self.bits)}"


def read_runs(file: Path) -> list[Finished]:
    """Every line of the file; of two that say the same run, the later."""
    runs = [Finished(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    return list({(run.recipe, run.size, run.seed, run.tokens, run.rate): run for run in runs}.values())


def groups_of(runs: Sequence[Finished]) -> list[Group]:
    """In the file's order. Seeds that neither Malmoi's nor the base had are those of a sweep, and stand apart."""
    compared = {run.seed for run in runs if run.recipe in (OURS, BASE)}
    runs = [run if run.seed in compared else replace(run, recipe=f"{run.recipe}{SWEEP}") for run in runs]
    keys = dict.fromkeys((run.recipe, run.size, run.tokens, run.rate) for run in runs)
    groups = []
    for key in keys:
        of_key = sorted(
            (run for run in runs if (run.recipe, run.size, run.tokens, run.rate) == key), key=lambda run: run.seed
        )
        groups.append(Group(*key, of_key[0].steps, tuple((run.seed, run.bits_per_byte) for run in of_key)))
    return groups


def verdict(changes: Sequence[float]) -> str:
    """Of differences in bits per byte, seed by seed: below zero is better."""
    if len(changes) > 1 and all(change < 0 for change in changes):
        return "helps"
    if len(changes) > 1 and all(change > 0 for change in changes):
        return "hurts"
    return "within the seeds' spread"


def recipes_table(groups: Sequence[Group]) -> list[str]:
    """All runs of whole recipes, by size and tokens."""
    lines = [
        "| model | recipe | peak rate | tokens | updates | bits per byte, median | lowest to highest | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group in sorted(groups, key=lambda group: (group.size, group.recipe, -group.tokens, group.rate)):
        cells = f"{group.tokens:,} | {group.steps:,} | {group.cells()}"
        lines.append(f"| {group.size} | {group.recipe} | {group.rate:g} | {cells} |")
    return lines


def changes_table(groups: Sequence[Group], base: Group) -> list[str]:
    """Each change against `base`, the best first, and those whose seeds are not all there after them."""
    rows: list[tuple[float, str]] = []
    unfinished: list[str] = []
    for group in groups:
        if group is base:
            continue
        if not base.by_seed.keys() <= group.by_seed.keys():
            unfinished.append(f"{group.recipe} ({len(group.bits)} of {len(base.bits)} seeds)")
            continue
        changes = [group.by_seed[seed] - bits for seed, bits in base.bits]
        middle = statistics.median(changes)
        of_all = f"{min(changes):+.3f} to {max(changes):+.3f}"
        median = statistics.median(group.values)
        rows.append((middle, f"| {group.recipe} | {median:.3f} | {middle:+.3f} | {of_all} | {verdict(changes)} |"))
    lines = [
        "| change | bits per byte, median | change, median | lowest to highest | |",
        "| --- | --- | --- | --- | --- |",
        f"| none | {statistics.median(base.values):.3f} | | | |",
        *(row for _, row in sorted(rows)),
    ]
    return lines + (["", f"Not finished: {'; '.join(unfinished)}."] if unfinished else [])


def tables(runs: Sequence[Finished]) -> str:
    """Whole recipes, then the changes to the base, at each size and count of tokens at which there are any."""
    groups = groups_of(runs)
    whole = [group for group in groups if group.recipe.removesuffix(SWEEP) in (OURS, BASE, "nanogpt", "tutorial")]
    changed = [group for group in groups if group not in whole]
    lines = recipes_table(whole)
    bases = [
        group
        for group in whole
        if group.recipe == BASE and any((each.size, each.tokens) == (group.size, group.tokens) for each in changed)
    ]
    for base in bases:
        beside = [each for each in changed if (each.size, each.tokens) == (base.size, base.tokens)]
        lines += ["", f"One change at a time: model {base.size}, {base.tokens:,} tokens.", ""]
        lines += changes_table(beside, base)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "results" / "learning.jsonl")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    if not options.runs.is_file():
        sys.exit(f"{options.runs}: no finished runs; benchmarks/learning.py makes them")
    made = tables(read_runs(options.runs))
    print(made)
    if options.write is not None:
        write_tables(options.write, SCRIPT, made)


if __name__ == "__main__":
    main()
