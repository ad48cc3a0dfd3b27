"""The Dockerfile and the Apptainer definition, as far as they can be tried without a builder."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from malmoi.launch.slurm.request import parse_request
from tests.launching import ROOT
from tests.pages import Page

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
APPTAINER = (ROOT / "malmoi.def").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def docker_scripts() -> list[str]:
    """The shell scripts of the RUN instructions, in order."""
    return [found.replace("\\\n", "") for found in re.findall(r"^RUN ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)]


def apptainer_section(name: str) -> str:
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", APPTAINER, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def arguments() -> dict[str, str]:
    return dict(line.strip().split("=", 1) for line in apptainer_section("arguments").strip().splitlines())


def installed_by(script: str, folder: Path, device: str) -> list[list[str]] | None:
    """The words of each `pip install` of a script, with stubs for pip and apt-get; None where it fails."""
    shutil.copy(ROOT / "constraints.txt", folder)
    for name in ("pip", "apt-get", "rm"):
        (folder / name).write_text(f'#!/bin/sh\nprintf "%s " {name} "$@" >> words\necho >> words\n')
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder}:/usr/bin:/bin", "DEVICE": device, "EXTRAS": arguments()["EXTRAS"]}
    done = subprocess.run(["sh", "-euc", script], cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        assert f"DEVICE is cpu or cuda, not {device}" in done.stderr
        return None
    lines = [shlex.split(line) for line in (folder / "words").read_text().splitlines()]
    return [words for words in lines if words[:2] == ["pip", "install"]]


def script_of(kind: str, folder: Path, device: str) -> str:
    if kind == "docker":
        # The first instruction installs from Debian, the last one makes the user.
        return "\n".join(docker_scripts()[:-1])
    script = apptainer_section("post").replace("/opt/malmoi", str(folder))
    return script.replace("{{ DEVICE }}", device).replace("{{ EXTRAS }}", arguments()["EXTRAS"])


@pytest.mark.parametrize("kind", ["docker", "apptainer"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "tpu"])
def test_an_image_is_built_from_the_pinned_versions_for_its_device(kind: str, device: str, tmp_path: Path) -> None:
    installed = installed_by(script_of(kind, tmp_path, device), tmp_path, device)
    if device == "tpu":
        assert installed is None
        return
    assert installed is not None and len(installed) == 2
    assert all(words[3:5] == ["--constraint", "constraints.txt"] for words in installed)
    torch, malmoi = installed
    assert torch[-1] == "torch" and (CPU_INDEX in torch) == (device == "cpu")
    assert malmoi[-1] == f".[{arguments()['EXTRAS']}]"


def test_both_images_hold_the_same() -> None:
    [base] = re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE)
    assert f"\nBootstrap: docker\nFrom: {base}\n" in APPTAINER and not base.endswith("latest")
    docker = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    assert docker["EXTRAS"] == arguments()["EXTRAS"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(docker["EXTRAS"].split(",")) == set(extras) - {"dev", "docs"}


def test_the_docker_image_does_not_run_as_root_and_starts_malmoi() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert users and users[-1] == ("1000", "1000")
    assert DOCKERFILE.endswith('ENTRYPOINT ["malmoi"]\nCMD ["doctor"]\n')
    assert "malmoi doctor" in apptainer_section("test") and 'exec malmoi "$@"' in apptainer_section("runscript")


def test_what_is_sent_to_a_builder_makes_the_package_and_holds_nothing_else(tmp_path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines and all((ROOT / name).exists() for name in sent)
    links = [link.name for link in (ROOT / "malmoi").iterdir() if link.is_symlink()]
    assert set(sent) == {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "malmoi", *links}
    copied = [line.split()[0] for line in apptainer_section("files").strip().splitlines()]
    assert set(copied) == set(sent) - set(links)


def test_the_scripts_of_both_are_without_warnings(tmp_path: Path) -> None:
    shellcheck = str(Path(sys.executable).parent / "shellcheck")
    for kind in ("docker", "apptainer"):
        script = script_of(kind, tmp_path, "cpu")
        command = [shellcheck, "--shell=sh", "--exclude=SC2194", "-"]  # a template's value is a constant word
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_commands_of_the_page_name_what_is_there() -> None:
    lines = re.findall(r"^(?:docker|apptainer|malmoi) .*(?:\\\n.*)*$", PAGE, re.MULTILINE)
    assert len(lines) >= 9
    for device in re.findall(r"DEVICE=(\w+)", PAGE):
        assert device in {"cpu", "cuda"}
    assert {"doctor", "train --config demo"} <= set(re.findall(r"malmoi\.sif (doctor|train --config \w+)", PAGE))
    [job] = Page("images.md").commands()
    assert job[:2] == ["slurm", "submit"] and parse_request(job[2:], "", "").options.apptainer == "/shared/malmoi.sif"
    assert all(fnmatch(name, "malmoi:c*") for name in re.findall(r"malmoi:\w+", PAGE))
