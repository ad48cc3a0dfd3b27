"""docs/launch.md agrees with the code, and the Slurm commands of the README are accepted."""

import re
from pathlib import Path

import pytest

from malmoi.configs.commands import SlurmOptions
from malmoi.configs.parser import preset_names
from malmoi.configs.run import RunSettings
from malmoi.launch.slurm.checks import check_request
from malmoi.launch.slurm.request import parse_request
from tests.launching import ROOT

PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")


def test_every_option_and_message_of_the_page_exists() -> None:
    files = [
        file for folder in ("launch", "train") for kind in ("*.sh", "*.py") for file in (ROOT / folder).rglob(kind)
    ]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    slurm = PAGE[PAGE.index("## Slurm") : PAGE.index("## By hand")]
    others = {"config", "cluster", "run", "help", "grid", "finetune", "task"}
    for option in set(re.findall(r"(?<![\w-])--(\w+)", slurm)) - others:
        assert option in SlurmOptions.__dataclass_fields__ or f"{option}" in RunSettings.__dataclass_fields__, option
    for message in (
        "a local disk that other nodes cannot see",
        "is not visible on every node",
        "consecutive starts made no progress",
        "the ranks did not stop in time",
        "ports up to",
        "this cluster does not requeue jobs",
        "could not queue the next job of the chain",
        "another process trains here",
        "without RANK",
    ):
        assert message in PAGE and message in code, message


def test_the_files_that_the_page_names_exist() -> None:
    for name in re.findall(r"(?:configs|launch|benchmarks)/[\w/]+\.\w+", PAGE):
        assert (ROOT / Path(name)).is_file(), name


@pytest.mark.parametrize("page", ["README.md", "README.ko.md", "docs/launch.md"])
def test_every_job_of_the_page_is_accepted_for_each_gpt_preset(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = re.findall(r"malmoi slurm (?:submit|render) (--config [^`#>|\n]*\d)", text)
    assert lines
    for line in lines:
        for name in [name for name in preset_names() if name.startswith("gpt")]:
            check_request(parse_request(line.replace("--config C ", f"--config {name} ").split(), "", ""))
