"""docs/fewshot.md and docs/generation.md: the commands on them work as they are."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from malmoi.evaluation.fewshot.results import read_results
from malmoi.evaluation.fewshot.task_files import BUILT_IN, TaskFile, built_in_tasks
from malmoi.launch.cli import main
from tests.pages import Page

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return Page(name).text


def typed(block: str, folder: Path) -> Iterator[list[str]]:
    """Run a block in bash and give the words of each of its `malmoi` command lines instead of running them."""
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "malmoi"
    command.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >> typed\nprintf "\\n" >> typed\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euc", block],
        cwd=folder,
        env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line in (folder / "typed").read_text(encoding="utf-8").splitlines():
        yield line.split("\0")[:-1]


@pytest.fixture
def in_folder(finished_run: Path, finished_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the pages' runs and files are there."""
    for run in ("demo", "a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "model").symlink_to(finished_run / "model")
        (tmp_path / "runs" / run / "shards").symlink_to(finished_shards)
    (tmp_path / "prompts.txt").write_text("이순신\n영화는\n", encoding="utf-8")
    (tmp_path / "my_text").mkdir()
    for name in ("human_texts.txt", "my_text/some.txt"):
        (tmp_path / name).write_text("이순신은 장군이다.\n영화가 재미있다.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_task_of_ones_own_runs_as_it_is_written(in_folder: Path) -> None:
    [block] = [text for text in BLOCK.findall(page("fewshot.md")) if "my_task" in text]
    [words] = typed(block, in_folder)
    assert main(words) == 0
    [result] = read_results(in_folder / "my_task" / "results")
    assert (result.task, result.documents) == ("reviews", 4)
    assert [point.shots for point in result.curve("acc")] == [0, 1, 3]


def test_the_pages_built_in_tasks_give_a_table_files_and_curves_in_the_report(
    in_folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [words for words in Page("fewshot.md").commands() if "my_task/reviews.yaml" not in words]
    assert [words[0] for words in commands] == ["fewshot", "report", "report"]
    tasks, report, report_with_others = commands
    shutil.rmtree("runs/demo")
    shutil.copytree(finished_run, "runs/demo")
    small = {"50": "2", "kobest": "kobest_sentineg"}
    assert main([small.get(word, word) for word in tasks]) == 0, capsys.readouterr().err
    results = read_results(Path("runs/demo/fewshot"))
    assert [result.task for result in results] == ["kobest_sentineg", "sentiment"]
    assert [len(result.runs) for result in results] == [7, 7]  # one without examples, and three seeds of 1 and of 5
    shutil.copytree("runs/demo/fewshot", "other/fewshot")
    for words in (report, report_with_others):
        assert main(words) == 0, capsys.readouterr().err
    assert "kobest_sentineg" in Path("runs/demo/report.html").read_text(encoding="utf-8")


def test_every_command_of_the_page_on_generation_runs(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in BLOCK.findall(page("generation.md")) for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        words = ["16" if word == "64" else word for word in shlex.split(line)]  # a stride within the tiny context
        if words[1] in ("generate", "quality"):
            words += ["--max_new_tokens", "8"]
        if words[1] == "quality" and "--texts" not in words:
            words[words.index("50")] = "3"
        assert main(words[1:]) == 0, capsys.readouterr().err


def test_the_page_names_every_field_of_a_task_file_and_every_task() -> None:
    text = page("fewshot.md")
    for name in TaskFile.__dataclass_fields__:
        assert f"`{name}`" in text or name == "arithmetic"
    for name in built_in_tasks():
        assert f"`{name}`" in text or name.startswith("arithmetic_")


def test_the_tasks_data_is_small_and_has_its_licenses_beside_it() -> None:
    files = list((BUILT_IN / "data").iterdir())
    assert sum(file.stat().st_size for file in files) < 1_500_000
    told = (BUILT_IN / "README.md").read_text(encoding="utf-8")
    for file in files:
        stem = file.name.removesuffix(".jsonl.gz").removesuffix("_examples")
        assert f"`{stem}`" in told or f"`_{stem.removeprefix('kobest_')}`" in told
