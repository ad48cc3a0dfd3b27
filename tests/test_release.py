"""What a release is made of: one version, a changelog of the usual form, and workflows that run what is there."""

import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import malmoi
from tests.launching import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))
SUPPORTED = ["3.11", "3.12", "3.13"]


def read_yaml(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(content, dict), file
    return content


def jobs() -> dict[str, dict[str, Any]]:
    """Each job of every workflow, by `file:job`."""
    return {f"{file.name}:{name}": job for file in WORKFLOWS for name, job in read_yaml(file)["jobs"].items()}


def test_the_version_is_written_in_the_package_and_cited() -> None:
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert str(Version(malmoi.__version__)) == malmoi.__version__
    assert read_yaml(ROOT / "CITATION.cff")["version"] == malmoi.__version__


KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    headings = re.findall(r"^(#+) (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == [("#", "Changelog"), ("##", "[Unreleased]")]
    releases, kinds = [], []
    for level, title in headings[2:]:
        if level == "##":
            found = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", title)
            assert found is not None, title
            releases.append((Version(found[1]), date.fromisoformat(found[2])))
            kinds = []
        else:
            kinds.append(title)
            assert level == "###" and kinds == [kind for kind in KINDS if kind in kinds], title
    assert releases == sorted(releases, reverse=True)
    assert all(version <= Version(malmoi.__version__) for version, _ in releases)


def test_the_supported_pythons_are_declared_and_tested() -> None:
    prefix = "Programming Language :: Python :: 3."
    assert [f"3.{each.removeprefix(prefix)}" for each in PROJECT["classifiers"] if each.startswith(prefix)] == SUPPORTED
    required = SpecifierSet(PROJECT["requires-python"])
    assert all(python in required for python in SUPPORTED) and "3.10" not in required
    for name in ("ci.yml:test", "ci.yml:package"):
        assert jobs()[name]["strategy"]["matrix"]["python"] == SUPPORTED


@pytest.mark.parametrize("name", jobs())
def test_a_job_is_bounded_and_runs_what_is_there(name: str) -> None:
    job = jobs()[name]
    assert job["timeout-minutes"] <= 90
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in commands:
        if command.startswith("make "):
            assert set(command.split()[1:]) <= set(targets), command
        else:
            file = ROOT / command
            assert file.is_file() and file.stat().st_mode & 0o111, command
    for action in (step["uses"] for step in job["steps"] if "uses" in step):
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action), f"{action}: no version"


def test_ci_runs_the_suite_and_the_wheel_and_may_write_nothing() -> None:
    commands = {step.get("run") for job in jobs().values() for step in job["steps"]}
    assert {".ci/run", ".ci/package", "make site"} <= commands
    for file in WORKFLOWS:
        assert read_yaml(file)["permissions"] == {"contents": "read"}


def test_the_scripts_of_ci_are_without_warnings() -> None:
    files = sorted(str(file) for file in (ROOT / ".ci").iterdir() if not file.suffix)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "shellcheck"), *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_an_issue_form_has_what_github_needs(file: Path) -> None:
    form = read_yaml(file)
    assert form["name"] and form["description"]
    identifiers = [field["id"] for field in form["body"]]
    assert len(set(identifiers)) == len(identifiers) > 1
    assert all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])
