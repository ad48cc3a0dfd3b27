"""The documentation as a site: no broken link, complete references, and a first page that leads to each of its ends."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

import malmoi
from malmoi.launch.cli import main
from malmoi.launch.slurm.checks import check_request
from malmoi.launch.slurm.request import parse_request
from tests.conftest import demo_texts
from tests.launching import ROOT, environment
from tests.pages import DOCS, FENCED, Page
from tests.time_limits import seconds

SMALLER = (
    *("--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=128"),
    *("--train.max_steps=2", "--train.global_batch_size=4", "--train.micro_batch_size=4", "--train.precision=fp32"),
    *("--schedule.warmup_steps=0", "--generate.max_new_tokens=4"),
)
"""What keeps each training run of the page short."""


def page(name: str) -> str:
    return Page(name).text


def described(name: str) -> set[str]:
    """The objects whose docstrings a page shows."""
    return set(re.findall(r"^::: (\S+)$", page(name), re.MULTILINE))


def settings_classes(kind: type[Any]) -> Iterator[type[Any]]:
    """The dataclasses of settings in `kind`: itself, those that it inherits from, and those of its fields."""
    yield from (each for each in kind.__mro__ if is_dataclass(each))
    hints = get_type_hints(kind)
    for field in fields(kind):
        if isinstance(inner := hints[field.name], type) and is_dataclass(inner):
            yield from settings_classes(inner)


def test_every_public_name_is_in_the_reference() -> None:
    names = {each.rsplit(".", 1)[1] for each in described("api.md") | described("settings.md")}
    registries = set(re.findall(r"^\| `(\w+)` \|", page("api.md"), re.MULTILINE))
    assert set(malmoi.__all__) <= names | registries


def test_every_settings_class_is_in_the_reference() -> None:
    classes = {*settings_classes(malmoi.RunSettings), *settings_classes(malmoi.FinetuneSettings)}
    assert len(classes) > 20
    assert {f"{each.__module__}.{each.__qualname__}" for each in classes} <= described("settings.md")


def test_the_first_page_leads_to_every_page() -> None:
    pages = {file.name for file in DOCS.glob("*.md") if not file.name.endswith(".ko.md")}
    reached, waiting = {"index.md"}, ["index.md"]
    while waiting:
        for name in re.findall(r"\]\((?:docs/)?(\w+\.md)", page(waiting.pop())):
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert set(re.findall(r"\w+\.md", json.dumps(nav))) == pages
    assert reached == pages


def test_every_beginning_of_the_first_page_leads_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_text").mkdir()
    rows = [{"text": text, "label": "short" if len(text) < 40 else "long"} for text in demo_texts("film_reviews", 200)]
    for file, part in (("my_text/reviews.jsonl", rows), ("train.jsonl", rows[:12]), ("dev.jsonl", rows[12:18])):
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    done = []
    for name, *words in Page("index.md").commands():
        if name == "slurm":
            if words[0] != "status":  # which asks a cluster; tests/launch/cluster has one
                check_request(parse_request(words[1:], "", ""))
            continue
        if name == "train":
            words += SMALLER
            if "--corpus.input" not in words:
                words += ["--corpus.input=[my_text]", "--tokenizer.vocab_size=2048"]
        if name == "finetune":
            words += ["--train.max_steps=1"]
        if name != "doctor":
            assert main([name, *words]) == 0, words
            done.append(name)
    assert set(done) == {"train", "report", "generate", "tokenizer", "prepare", "inspect", "evaluate", "finetune"}
    for made in ("runs/demo/report.html", "runs/mine/model", "runs/newer/model", "runs/sentiment/finetune.json"):
        assert Path(made).exists(), made


@pytest.mark.parametrize("file", sorted(DOCS.glob("*.md")), ids=lambda file: file.name)
def test_lists_and_tables_begin_after_an_empty_line_without_which_the_site_has_none(file: Path) -> None:
    lines = FENCED.sub("\n", file.read_text(encoding="utf-8")).splitlines()
    for before, line in pairwise(lines):
        if re.match(r"- |\d+\. ", line):
            assert not before or before.startswith(("- ", "  ")) or re.match(r"\d+\. ", before), f"{before}\n{line}"
        if line.startswith("|"):
            assert not before or before.startswith("|"), f"{before}\n{line}"


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra `docs` is not installed; `make site` installs it")
def test_the_site_builds_in_both_languages_without_a_broken_link(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    english, korean = ((tmp_path / name).read_text("utf-8") for name in ("index.html", "ko/index.html"))
    assert 'lang="en"' in english and 'lang="ko"' in korean and "노트북" in korean
    assert 'id="malmoi.api.train"' in (tmp_path / "api" / "index.html").read_text("utf-8")
    launching = (tmp_path / "launch" / "index.html").read_text("utf-8")
    assert '<span class="option">-m</span> malmoi.train <span class="option">--config</span> gpt2-small' in launching
    # A reader's browser asks nobody else for anything.
    fetched = re.compile(r'<(?:script|img|link)[^>]*(?:src|href)="https?://', re.IGNORECASE)
    assert not [file for file in tmp_path.rglob("*.html") if fetched.search(file.read_text("utf-8"))]
    texts = {entry["text"] for entry in json.loads((tmp_path / "search/search_index.json").read_text("utf-8"))["docs"]}
    assert any("노트북" in text for text in texts) and any("laptop" in text for text in texts)
