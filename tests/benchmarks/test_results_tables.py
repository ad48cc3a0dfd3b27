import json
from pathlib import Path

import pytest

from benchmarks.page_tables import END, begin_of, with_tables
from benchmarks.results_tables import SCRIPT, tables
from inference.fewshot_results import Baseline, Score, ShotRun, TaskResult, write_result

BEGIN = begin_of(SCRIPT)


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_tables(page, SCRIPT, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert with_tables(once, SCRIPT, "new") == once
    with pytest.raises(ValueError, match="no line"):
        with_tables("a page without them", SCRIPT, "new")


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
    (tmp_path / "figures.json").write_text(json.dumps({"nsmc": rows}))
    made = tables(tmp_path, [tmp_path])
    assert "| task | score | 0 shots | 1 shots | chance | commonest | documents |" in made
    assert "| topic | acc | 0.250 | 0.300 ± 0.100 | 0.500 | - | 10 |" in made
    assert "topic, 1 shot: 4 of 20 prompts outgrew the context and lost 5 examples" in made
    assert "| nsmc | accuracy | 0.500 | 0.750 (0.700 to 0.800) |" in made
