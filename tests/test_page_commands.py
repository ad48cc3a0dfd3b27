"""Every command, YAML and line of Python on the pages is one that the code of today takes as it is written."""

import ast
import re
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import malmoi
from malmoi.configs import parser
from malmoi.configs.commands import SlurmOptions
from malmoi.configs.parser import load_config
from malmoi.launch.cli import main
from tests.launching import ROOT
from tests.pages import DOCS, Page, words_of

PAGES = sorted(file.name for file in DOCS.glob("*.md") if not file.name.endswith(".ko.md"))


class Parsed(BaseException):
    """A command line was taken, and is not run."""


def malmoi_words(words: list[str]) -> list[str] | None:
    """What `malmoi` gets of a command line, whoever starts it; None: it starts something else."""
    if words[0] == "malmoi":
        return words[1:]
    for module, command in (("malmoi.train", ["train"]), ("malmoi.launch", [])):
        if module in words:
            return command + words[words.index(module) + 1 :]
    images = [number for number, word in enumerate(words) if re.fullmatch(r"malmoi(:\w+|\.sif)", word)]
    return words[images[0] + 1 :] or ["doctor"] if images else None


def check_other(words: list[str]) -> None:
    """Check a command that is not `malmoi`'s: its script, module, options or extra exist."""
    if words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert extra in extras, f"no extra {extra}"
    elif words[1] == "-m":
        assert find_spec(words[2]) is not None, f"no module {words[2]}"
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words[1]
        scripts = "".join(file.read_text(encoding="utf-8") for file in (ROOT / words[1]).parent.glob("*.py"))
        for option in [word for word in words if word.startswith("--")]:
            assert f'"{option}"' in scripts, f"{words[1]} has no {option}"


@pytest.fixture
def parse_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end when their settings are parsed. The files that the pages name as settings are there."""
    parse = parser._parsed

    def parsed(kind: type[Any], *args: Any) -> Any:
        settings = parse(kind, *args)
        if kind is SlurmOptions:  # the settings of the run come next
            return settings
        raise Parsed

    monkeypatch.setattr(parser, "_parsed", parsed)
    monkeypatch.chdir(tmp_path)
    for name in ("C", "runs/demo/config.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"), encoding="utf-8")


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("name", PAGES)
def test_every_option_setting_and_value_of_a_pages_commands_is_taken(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Page(name)
    for block in page.blocks("yaml"):
        if named := re.match(r"# (\S+\.yaml)\n", block):  # a file that the page's commands name
            Path(named[1]).write_text(block, encoding="utf-8")
        else:
            Path("block.yaml").write_text(block, encoding="utf-8")
            with pytest.raises(Parsed):
                load_config("block.yaml")
    refused = []
    for line in page.command_lines():
        words = words_of(line)
        ours = malmoi_words(words)
        if ours is None:
            check_other(words)
            continue
        try:
            code = main(ours)
            refused.append(f"{line}\n  exit {code}: {capsys.readouterr().err}")
        except Parsed:
            pass
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("name", PAGES)
def test_every_name_of_malmoi_in_a_pages_python_is_there(name: str) -> None:
    for block in Page(name).blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("malmoi"):
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), f"{node.module}.{alias.name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "malmoi":
                assert hasattr(malmoi, node.attr), f"malmoi.{node.attr}"


def test_the_pages_commands_are_found() -> None:
    found = {name: [words_of(line) for line in Page(name).command_lines()] for name in PAGES}
    ours = [words for lines in found.values() for words in lines if malmoi_words(words)]
    assert len(ours) > 80
    assert ["malmoi", "slurm", "render", "--config", "C", "--nodes", "2", "--gpus_per_node", "8"] in ours
    silent = {name for name, lines in found.items() if not lines}
    assert silent <= {"api.md", "settings.md"}
