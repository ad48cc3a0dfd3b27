import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.run_all import BENCHMARKS, ELSEWHERE, Measured, tables
from tests.launching import ROOT

SCRIPTS = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}


def test_every_script_is_run_or_it_is_said_why_not() -> None:
    run = {benchmark.script or name for name, benchmark in BENCHMARKS.items()}
    assert run | ELSEWHERE.keys() == SCRIPTS


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))])
def test_the_scripts_that_a_page_names_are_there(page: str) -> None:
    for name in re.findall(r"benchmarks/(\w+)\.py", (ROOT / page).read_text()):
        assert name in SCRIPTS, name


def test_a_benchmark_is_run_and_what_it_said_is_kept_with_the_machine(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run(
            [sys.executable, "benchmarks/run_all.py", "--quick", "--only", "overhead", "--out", str(tmp_path)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=200,
        )
    (seen,) = json.loads((tmp_path / "cpu-quick.json").read_text()).values()
    assert seen["command"].startswith("python benchmarks/overhead.py --layers 1")
    assert seen["environment"]["torch"] and seen["environment"]["cores"]
    assert seen["figures"]["ratio"] > 0


def test_every_number_stands_on_the_page() -> None:
    figures = {
        "threads": 2,
        "shape": {"layers": 6},
        "speeds": [{"side": "plain", "ratio": [1.0, 0.5]}, {"side": "ours", "ratio": None}],
        "measured": {"seconds": 0.25, "ways": {"malmoi": {"steps": 3}, "torch": {"steps": 4}}},
        "parts": [{"part": "loss", "share": 0.25}, {"part": "rest", "share": 0.75}],
    }
    made = tables({"training": Measured("python x", "abc", 1.0, {"processor": "P", "cores": 2, "torch": "2"}, figures)})
    for line in (
        "`python x`: 1 s at abc on P,",
        "threads 2, shape (layers 6).",
        "| plain | 1 / 0.5 |",
        "| ours |  |",
        "measured: seconds 0.25.",
        "| ways | steps |",
        "| torch | 4 |",
        '  "loss" : 25.0',
    ):
        assert line in made.splitlines(), line
