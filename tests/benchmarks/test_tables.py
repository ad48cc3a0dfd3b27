import json
from pathlib import Path

import pytest
from learning_recipes import Run, read_runs
from tables import END, begin_marker, figure_tables, group_runs, learning_tables, results_tables, verdict, with_tables

from malmoi.evaluation.fewshot.results import Baseline, Score, ShotRun, TaskResult, write_result

SCRIPT = "tables.py results"
BEGIN = begin_marker(SCRIPT)


def test_only_what_is_between_the_markers_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_tables(page, SCRIPT, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert with_tables(once, SCRIPT, "new") == once
    with pytest.raises(ValueError, match="no line"):
        with_tables("a page without them", SCRIPT, "new")


def test_every_figure_is_in_a_line_or_a_table() -> None:
    figures = {
        "threads": 2,
        "shape": {"layers": 6},
        "speeds": [{"side": "plain", "ratio": [1.0, 0.5]}, {"side": "ours", "ratio": None}],
        "measured": {"seconds": 0.25, "ways": {"malmoi": {"steps": 3}, "torch": {"steps": 4}}},
        "modeled": None,
        "parts": [{"part": "loss", "share": 0.25}, {"part": "rest", "share": 0.75}],
    }
    lines = list(figure_tables(figures))
    for line in (
        "threads 2, shape (layers 6).",
        "| plain | 1 / 0.5 |",
        "| ours |  |",
        "measured: seconds 0.25.",
        "| ways | steps |",
        "| torch | 4 |",
        "| loss | 0.25 |",
    ):
        assert line in lines, line


def run(recipe: str, seed: int, bits: float, tokens: int = 300, rate: float = 0.01) -> Run:
    return Run(recipe, "S", seed, tokens, rate, bits, 1.0, 3)


OURS = [run("malmoi", seed, 2.0 + seed / 10) for seed in (1, 2, 3)]
BASE = [run("base", seed, 2.0 + seed / 10) for seed in (1, 2, 3)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((-0.1, -0.2, -0.001), "helps"),
        ((0.1, 0.2, 0.001), "hurts"),
        ((-0.3, -0.2, 0.001), "within the seeds' spread"),
        ((-0.3,), "within the seeds' spread"),
    ],
)
def test_a_change_helps_or_hurts_only_where_all_of_several_seeds_say_so(
    changes: tuple[float, ...], expected: str
) -> None:
    assert verdict(changes) == expected


def test_a_change_is_set_against_the_base_seed_by_seed() -> None:
    # Apart from seed to seed by more than from the base, and each seed below the base's own.
    changed = [run("changed", seed, 1.99 + seed / 10) for seed in (3, 1, 2)]
    (line,) = [line for line in learning_tables([*BASE, *changed]).splitlines() if line.startswith("| changed")]
    assert line == "| changed | 2.190 | -0.010 | -0.010 to -0.010 | helps |"


def test_a_change_that_lacks_a_seed_gets_no_verdict() -> None:
    tables = learning_tables([*BASE, run("changed", 1, 0.5), run("changed", 2, 0.5)])
    assert "Not finished: changed (2 of 3 seeds)." in tables
    assert "| changed" not in tables


def test_the_seed_that_chose_a_rate_is_not_among_those_that_are_compared() -> None:
    swept = [run("nanogpt", seed, bits) for seed, bits in ((11, 9.0), (1, 2.0), (2, 2.1), (3, 2.2))]
    lines = learning_tables([*OURS, *swept]).splitlines()
    assert "| S | nanogpt | 0.01 | 300 | 3 | 2.100 | 2.000 to 2.200 | 3 |" in lines
    assert "| S | nanogpt, sweep of rates | 0.01 | 300 | 3 | 9.000 | 9.000 to 9.000 | 1 |" in lines


def test_other_tokens_are_another_row() -> None:
    other = [run("malmoi", seed, 3.0, tokens=90) for seed in (1, 2, 3)]
    groups = group_runs([*OURS, *other])
    assert [[*group.bits.values()] for group in groups] == [[2.1, 2.2, 2.3], [3.0, 3.0, 3.0]]


def test_of_two_lines_of_one_run_the_later_counts(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    lines = [vars(run("malmoi", 1, bits)) for bits in (3.0, 2.0)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert [made.bits_per_byte for made in read_runs(file).values()] == [2.0]


def test_the_tables_hold_each_score_with_its_spread_chance_and_the_commonest_answer(tmp_path: Path) -> None:
    runs = [ShotRun(0, 0, (Score("acc", 0.25, 0.1),), 0, 0)]
    runs += [ShotRun(1, seed, (Score("acc", score, 0.1),), 4 * seed, 5 * seed) for seed, score in ((0, 0.2), (1, 0.4))]
    (tmp_path / "fewshot").mkdir()
    write_result(
        tmp_path / "fewshot",
        TaskResult("topic", "M", 10, 0, 10, (Baseline("acc", 0.5, None),), tuple(runs), "CC0", ()),
    )
    scores = {"none": (0.5, None, None), "pre-trained": (0.75, 0.7, 0.8)}
    rows = {
        name: [{"name": "accuracy", "value": value, "low": low, "high": high}]
        for name, (value, low, high) in scores.items()
    }
    (tmp_path / "figures.json").write_text(json.dumps({"nsmc": rows}), encoding="utf-8")
    tables = results_tables(tmp_path, [tmp_path])
    assert "| task | score | 0 shots | 1 shots | chance | commonest | documents |" in tables
    assert "| topic | acc | 0.250 | 0.300 ± 0.100 | 0.500 | - | 10 |" in tables
    assert "topic, 1 shot: 4 of 20 prompts outgrew the context and lost 5 examples" in tables
    assert "| nsmc | accuracy | 0.500 | 0.750 (0.700 to 0.800) |" in tables
