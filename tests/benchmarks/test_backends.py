"""The table of docs/launch.md is what the ranks of each preset were counted to hold."""

import pytest
from backends import GIB_OF_A_GPU, GPUS, USABLE, WAYS, cell, needed_gib, row, table

from tests.launching import ROOT

PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
FAST = "gpt2-small"


@pytest.mark.soak
def test_the_table_of_backends_is_what_is_counted() -> None:
    assert "\n".join(table()) in PAGE


def test_the_row_of_a_preset_is_what_is_counted() -> None:
    assert row(FAST) in PAGE


@pytest.mark.parametrize(
    "preset", [FAST, *(pytest.param(name, marks=pytest.mark.soak) for name in ("gpt2-xl", "gpt3-2.7b"))]
)
def test_the_first_way_that_fits_is_chosen(preset: str) -> None:
    for memory in GIB_OF_A_GPU:
        chosen = [way.name for way in WAYS].index(cell(preset, memory))
        needs = [needed_gib(preset, way, GPUS) for way in WAYS[: chosen + 1]]
        assert needs[-1] <= USABLE * memory and all(need > USABLE * memory for need in needs[:-1])
