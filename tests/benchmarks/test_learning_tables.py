import json
from pathlib import Path

import pytest

from benchmarks.learning_tables import Finished, groups_of, read_runs, tables, verdict


def run(recipe: str, seed: int, bits: float, tokens: int = 300, rate: float = 0.01) -> Finished:
    return Finished(recipe, "S", seed, tokens, rate, bits, 1.0, 3)


OURS = [run("malmoi", seed, 2.0 + seed / 10) for seed in (1, 2, 3)]
BASE = [run("base", seed, 2.0 + seed / 10) for seed in (1, 2, 3)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((-0.1, -0.2, -0.001), "helps"),
        ((0.1, 0.2, 0.001), "hurts"),
        ((-0.3, -0.2, 0.001), "within the seeds' spread"),
        ((-0.3,), "within the seeds' spread"),
    ],
)
def test_a_change_helps_or_hurts_only_where_all_of_several_seeds_say_so(changes: tuple[float, ...], said: str) -> None:
    assert verdict(changes) == said


def test_a_change_is_set_against_the_base_seed_by_seed() -> None:
    # Apart from seed to seed by more than from the base, and each seed below the base's own.
    changed = [run("changed", seed, 1.99 + seed / 10) for seed in (3, 1, 2)]
    (line,) = [line for line in tables([*BASE, *changed]).splitlines() if line.startswith("| changed")]
    assert line == "| changed | 2.190 | -0.010 | -0.010 to -0.010 | helps |"


def test_a_change_that_lacks_a_seed_gets_no_verdict() -> None:
    said = tables([*BASE, run("changed", 1, 0.5), run("changed", 2, 0.5)])
    assert "Not finished: changed (2 of 3 seeds)." in said
    assert "| changed" not in said


def test_the_seed_that_chose_a_rate_is_not_among_those_that_are_compared() -> None:
    swept = [run("nanogpt", seed, bits) for seed, bits in ((11, 9.0), (1, 2.0), (2, 2.1), (3, 2.2))]
    medians = {group.recipe: group.cells() for group in groups_of([*OURS, *swept])}
    assert medians["nanogpt"] == "2.100 | 2.000 to 2.200 | 3"
    assert medians["nanogpt, sweep of rates"] == "9.000 | 9.000 to 9.000 | 1"


def test_other_tokens_are_another_row() -> None:
    other = [run("malmoi", seed, 3.0, tokens=90) for seed in (1, 2, 3)]
    assert [group.values for group in groups_of([*OURS, *other])] == [[2.1, 2.2, 2.3], [3.0, 3.0, 3.0]]


def test_of_two_lines_of_one_run_the_later_counts(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    lines = [{**vars(run("malmoi", 1, bits))} for bits in (3.0, 2.0)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [made.bits_per_byte for made in read_runs(file)] == [2.0]
