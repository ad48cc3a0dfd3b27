"""The doctor: it names what is missing, what that costs and how to fix it, and fails only where nothing can train."""

import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from malmoi.launch import machine
from malmoi.launch.cli import main

BROKEN_TORCH = "raise ImportError('libtorch.so: cannot open\\nshared object file')\n"


@dataclass(frozen=True)
class Answer:
    """The output of `malmoi doctor`."""

    code: int
    out: str
    err: str

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        return {finding["what"]: finding for finding in json.loads(self.out)["findings"]}


def doctor(*words: str, path: str, modules: Path | None = None, open_files: int | None = None) -> Answer:
    """Run the doctor where `path` holds the programs, `modules` comes before installed packages."""
    here = str(Path(__file__).parents[2])
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("CXX", "CUDA_HOME")},
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([*([str(modules)] if modules else []), here]),
    }

    def limit() -> None:
        if open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

    code = "import sys; from malmoi.launch.cli import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, preexec_fn=limit
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def program(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\nexit 0\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def broken_torch(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text(BROKEN_TORCH)
    return tmp_path / "modules"


def test_without_optional_things_it_still_says_that_the_machine_can_train(tmp_path: Path) -> None:
    answer = doctor("--json", path=str(tmp_path), open_files=256)
    assert answer.code == 0
    assert answer.out.count("\n") == 1, "one JSON object and nothing else"
    assert json.loads(answer.out)["can_train"] is True
    for what, fix in (
        ("C++ compiler", "apt-get install -y g++"),
        ("ninja", "PATH"),
        ("Slurm", "slurm-client"),
        ("open files", "ulimit -n 256"),
    ):
        finding = answer.findings[what]
        assert finding["state"] in ("missing", "low") and finding["cost"] and fix in finding["fix"], finding
    assert "128 shards" in answer.findings["open files"]["cost"]
    assert answer.findings["torch"]["state"] == "ok"


def test_without_torch_nothing_trains_and_the_rest_is_still_reported(tmp_path: Path, broken_torch: Path) -> None:
    for name in ("sbatch", "scontrol", "g++", "ninja"):
        program(tmp_path / "bin", name)
    answer = doctor("--json", path=str(tmp_path / "bin"), modules=broken_torch, open_files=5000)
    assert answer.code == 1
    assert json.loads(answer.out)["can_train"] is False
    torch = answer.findings["torch"]
    assert torch["state"] == "missing" and "libtorch.so" in torch["found"] and "pip install" in torch["fix"]
    for what in ("Python", "Slurm", "C++ compiler", "ninja", "open files", "disk"):
        assert answer.findings[what]["state"] == "ok", answer.findings[what]
    assert answer.findings["Slurm"]["found"] == str(tmp_path / "bin" / "sbatch")


def test_the_table_gives_each_command_on_one_line(tmp_path: Path, broken_torch: Path) -> None:
    answer = doctor(path=str(tmp_path), modules=broken_torch)
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert any(line.startswith("missing  torch") and "nothing trains" in line for line in lines)
    fix = r" +Slurm +run on a login node of the cluster, or: apt-get install -y slurm-client"
    assert any(re.fullmatch(fix, line) for line in lines)
    assert lines[-1].startswith("This machine cannot train")
    assert "python -m torch.utils.collect_env; accelerate env; ds_report" in lines[-2]
    assert "\x1b" not in answer.out


def test_the_environment_reports_that_it_names_are_there() -> None:
    module, *programs = machine.ENVIRONMENT_REPORTS
    assert importlib.util.find_spec(module.removeprefix("python -m ")) is not None
    assert all((Path(sys.executable).parent / line.split()[0]).is_file() for line in programs)


def test_a_python_that_is_too_old_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "OLDEST_PYTHON", (99, 0))
    assert main(["doctor", "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["findings"][0]
    assert (first["what"], first["state"], first["cost"]) == ("Python", "low", "Malmoi needs 99.0")


@pytest.mark.parametrize(
    ("capability", "half", "toolkit"),
    [((7, 0), "no fast bf16", None), ((9, 0), "bf16 and fp16", "/usr/local/cuda")],
)
def test_each_gpu_is_reported_with_its_memory_and_precision(
    capability: tuple[int, int], half: str, toolkit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Real GPUs are rare where tests run: torch's answers are set, the rest is as it is.
    import torch

    properties = SimpleNamespace(name="NVIDIA Test", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", toolkit)
    found = {finding.what: finding for finding in machine.examine_machine()}
    assert found["CUDA compiler"].state == ("ok" if toolkit else "missing")
    assert found["GPU 0"].state == found["GPU 1"].state == "ok"
    assert "NVIDIA Test, 80 GiB" in found["GPU 1"].found and half in found["GPU 1"].found


def test_a_disk_that_is_almost_full_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MIN_DISK", 2**70)
    disk = next(finding for finding in machine.examine_machine() if finding.what == "disk")
    assert disk.state == "low" and "12 bytes a parameter" in disk.cost and "--run" in disk.fix


def test_a_package_that_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=99", "no-such-package-of-ours", "pytest>=8", "gone; extra == 'judge'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: lines)
    found = {finding.what: finding for finding in machine.examine_machine()}
    assert found["Malmoi"].state == "missing" and found["Malmoi"].fix == "pip install ."
    assert "numpy>=99" in found["Malmoi"].found and "no-such-package-of-ours" in found["Malmoi"].found
    assert "pytest" not in found["Malmoi"].found and "gone" not in found["Malmoi"].found
