"""The project speaks the field's words, spelled the American way: none of these is left in code, help or docs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from malmoi.configs.renamed import RENAMED
from tests.launching import ROOT

ROOMS = ("malmoi", "configs", "data_prep", "inference", "evaluation", "train", "launch", "benchmarks", "tests", "docs")
PAGES = ("README.md", "README.ko.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")
SUFFIXES = {".py", ".md", ".yaml", ".sh", ".html", ".js", ".css", ".toml"}
NOT_READ = {
    "tests/test_words.py",
    "tests/configs/test_renamed.py",
    "configs/renamed.py",  # the old names are what it is about
}

PHRASES = {
    "evaluation, validation": r"\b(?:a|an|each|every|no|one|last|next|first|this|that) looks?\b(?! (?:up|like|at))|"
    r"\blooks? at (?:the )?held|\bevery look\b",
    "validation split": r"\bheld[- ]out\b",
    "resume, continue": r"\b(?:go|goes|going|gone|went) on\b",
    "complete, valid": r"\b(?:is|are|be|was|were|not|no longer|stays|still|left|require) whole\b(?! copies)",
    "fix": r"\bmend(?:s|ed|ing)?\b",
    "error": r"\bfaults\b",
    "reported": r"\b(?:is|are|was|were|be|been|being|not) told\b(?! apart| from)",
    "optimizer step": r"\b(?:an|one|each|every|per|these|those|all|\d+) updates?\b|\bupdates? of (?:the )?weights?\b",
    "pending": r"\b(?:un)?settled\b",
    "heartbeat": r"\b(?:a|an|each|every|no|last|next|the) beats?\b",
    "what happened to": r"\bwhat became of\b",
    "unfinished": r"\bon (?:their|its) way\b",
    "is": r"\bstands\b(?! for| in )|\bstood\b",
    "is in": r"\blies\b(?! within)",
    "-ize": r"\b\w*(?:author|capital|custom|emphas|final|general|initial|maxim|memor|minim|normal|optim|organ|"
    r"orthogonal|parallel|penal|quant|random|real|recogn|regular|serial|special|standard|summar|synchron|token|util|vector|"
    r"visual)is(?:e|es|ed|er|ers|ing|ation|ations)\b",
    "-or, -l-, ...": r"\b\w*(?:behaviour|colour|favour|honour|neighbour|labelled|labelling|modelled|modelling|learnt|"
    r"artefact|analys(?:e|ed|ing)\b|catalogue|defence|grey|judgement|licence)\w*",
}
"""Word of the field -> pattern of what was said for it. `_` counts as a space, so that names are read as well."""

NAMES = (
    r"\b(?:HeldOut|BadInput|EXIT_BAD_INPUT|write_whole|require_whole|quick_imports|HostNumber|StopAgreement|LoggedUpdate|"
    r"agreed_checkpoint|every_look|hang_seconds|warning_seconds|until_done|least_control|shared_disk|open_engine|"
    r"largest_skipped_share|longest_document|exact_duplicates|near_duplicates|hangul_share|length_warmup|warmup_share|"
    r"decay_share|clip_norm|accept_changed_data|asynchronous_save|language_model_weight|fresh_weights)\b",
    r"\bnats\(|\bclass Nats\b|--at_once\b|\.at_once\b",
    # A setting's old name, in a message or on a page; not an attribute of something else.
    r"(?<![\w./])(?:"
    + "|".join(re.escape(old) for old in RENAMED if "." in old and not old.startswith("sampling."))
    + r")(?![\w.(]|\s*=[^=])",
)

ORDINARY = (
    r"aria-labelledby",
    r'b"held-out"',  # a key of the hash that splits documents: another would split them otherwise
    r"\W(?:unknown field )?'licence'\W|\"licence\"",  # a misspelling on purpose
)
"""What is meant although a pattern finds it."""

MEANT = {
    # Page faults, and the faults of fault injection.
    "error": ("tests/train/distributed/test_malloc.py", "tests/faults/", "docs/reliability", "README", "Makefile"),
}
"""Files and folders in which a pattern finds another word."""


def pages() -> Iterator[Path]:
    """Every text of code and docs; links of `malmoi` are read where they lead to."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*")):
            if file.is_file() and file.suffix in SUFFIXES and "results" not in file.parts:
                yield file
    yield from (ROOT / name for name in PAGES)


TEXTS = {
    name: file.read_text(encoding="utf-8")
    for file in pages()
    if (name := file.relative_to(ROOT).as_posix()) not in NOT_READ
}


def found(pattern: str, spaced: bool, skipped: tuple[str, ...] = ()) -> list[str]:
    """Places of a pattern, as `file:line: text`."""
    places = []
    expression = re.compile(pattern, re.IGNORECASE if spaced else 0)
    for name, text in TEXTS.items():
        if name.startswith(skipped):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            read = re.sub("|".join(ORDINARY), "", line)
            if expression.search(read.replace("_", " ") if spaced else read):
                places.append(f"{name}:{number}: {line.strip()}")
    return places


@pytest.mark.parametrize(("word", "pattern"), PHRASES.items(), ids=PHRASES)
def test_the_fields_word_is_used(word: str, pattern: str) -> None:
    places = found(pattern, spaced=True, skipped=MEANT.get(word, ()))
    assert not places, f"say `{word}`:\n" + "\n".join(places)


@pytest.mark.parametrize("pattern", NAMES, ids=["names", "methods", "settings"])
def test_no_old_name_is_left(pattern: str) -> None:
    places = found(pattern, spaced=False)
    assert not places, "\n".join(places)


def test_the_whole_tree_is_read() -> None:
    assert {"train/trainer.py", "docs/architecture.md", "README.ko.md", "tests/conftest.py"} <= set(TEXTS)
    assert found(r"import pytest", spaced=False)
