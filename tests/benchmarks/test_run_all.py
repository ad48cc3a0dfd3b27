import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_all import BENCHMARKS, ELSEWHERE, GPU_BENCHMARKS, MARKERS, Measured, tables
from tables import with_tables

from tests.launching import ROOT
from tests.time_limits import seconds

SCRIPTS = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
RESULTS = ROOT / "benchmarks" / "results"


def test_every_script_is_run_or_it_is_said_why_not() -> None:
    run = {benchmark.script or name for name, benchmark in BENCHMARKS.items()}
    assert run | ELSEWHERE.keys() == SCRIPTS
    assert GPU_BENCHMARKS.keys() <= run


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))])
def test_the_scripts_that_a_page_names_exist(page: str) -> None:
    for name in re.findall(r"benchmarks/(\w+)\.py", (ROOT / page).read_text(encoding="utf-8")):
        assert name in SCRIPTS, name


@pytest.mark.parametrize("device", MARKERS)
def test_the_page_shows_the_figures_as_they_were_recorded(device: str) -> None:
    recorded = json.loads((RESULTS / f"{device}.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    results = {name: Measured(**plain) for name, plain in recorded.items()}
    assert with_tables(page, MARKERS[device], tables(results)) == page


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_benchmark_is_run_and_its_figures_are_kept_with_the_machine(tmp_path: Path, times: int) -> None:
    for _ in range(times):
        subprocess.run(
            [sys.executable, "benchmarks/run_all.py", "--quick", "--only", "overhead", "--out", str(tmp_path)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=seconds(200),
        )
    (result,) = json.loads((tmp_path / "cpu-quick.json").read_text(encoding="utf-8")).values()
    assert result["command"] == "python benchmarks/overhead.py --quick"
    assert result["environment"]["torch"] and result["environment"]["cores"]
    assert result["figures"]["ratio"] > 0
