"""README.ko.md says what README.md says: the same sections, commands, figures, settings and pages."""

import re
from dataclasses import dataclass

import pytest

from tests.launching import ROOT

FENCED = re.compile(r"^```\w*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
FIGURE = re.compile(r"\d[\d.,]*(?:e-\d+)?[MB%]?")
FRACTION = re.compile(r"\d+분의 \d+")
"""What the English page writes as a word."""


@dataclass(frozen=True)
class Section:
    level: int
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines of the fenced blocks, without comments and with every <placeholder> alike."""
        lines = "".join(FENCED.findall(self.text)).splitlines()
        return [re.sub(r"<[^>]*>", "<>", re.sub(r"\s+#.*", "", line)) for line in lines]

    @property
    def prose(self) -> str:
        return FENCED.sub("", self.text)

    @property
    def rows(self) -> list[str]:
        """The rows of the tables."""
        return [line for line in self.text.splitlines() if line.startswith("|")]

    @property
    def files(self) -> list[str]:
        """What the lines of an indented block name: files and folders."""
        lines = [line for line in self.prose.splitlines() if line.startswith("    ")]
        return [name for line in lines for name in re.findall(r"[\w.-]+(?:/|\.(?:yaml|jsonl?|html))", line)]


def sections_of(page: str) -> list[Section]:
    text = (ROOT / page).read_text(encoding="utf-8")
    # A comment of the shell may begin a line too.
    hidden = FENCED.sub(lambda block: block[0].replace("\n#", "\n "), text)
    starts = [found.start() for found in re.finditer(r"^#+ ", hidden, re.MULTILINE)]
    ends = [*starts[1:], len(text)]
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return [Section(len(part) - len(part.lstrip("#")), part) for part in parts]


ENGLISH, KOREAN = sections_of("README.md"), sections_of("README.ko.md")


def test_the_headings_are_the_same_in_number_and_order() -> None:
    assert [section.level for section in KOREAN] == [section.level for section in ENGLISH]
    assert len(ENGLISH) > 8


@pytest.mark.parametrize("number", range(len(ENGLISH)), ids=[part.text.splitlines()[0] for part in ENGLISH])
def test_a_section_holds_the_same_commands_figures_and_names(number: int) -> None:
    english, korean = ENGLISH[number], KOREAN[number]
    assert korean.commands == english.commands
    assert korean.files == english.files
    assert set(SPAN.findall(korean.prose)) == set(SPAN.findall(english.prose))
    assert len(korean.rows) == len(english.rows)
    for translated, row in zip(korean.rows, english.rows, strict=True):
        assert sorted(SPAN.findall(translated)) == sorted(SPAN.findall(row))
        assert figures(FRACTION.sub("", translated)) == figures(row), translated


def figures(row: str) -> list[str]:
    return sorted(figure.rstrip(".,") for figure in FIGURE.findall(SPAN.sub("", row)))


def test_both_lead_to_the_same_pages() -> None:
    english, korean = (
        {page for section in sections for page in re.findall(r"\]\(([^)]+)\)", section.text)}
        for sections in (ENGLISH, KOREAN)
    )
    assert english - {"README.ko.md"} == korean - {"README.md"}
    assert "README.ko.md" in english and "README.md" in korean
    for page in english | korean:
        assert (ROOT / page).is_file(), page
