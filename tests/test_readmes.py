"""README.ko.md says what README.md says: the same sections, commands, figures, settings and pages."""

import re

import pytest

from tests.launching import ROOT
from tests.translated import Section, assert_same_code_names_and_rows, sections_of


def files(section: Section) -> list[str]:
    """What the lines of an indented block name: files and folders."""
    return [name for line in section.indented for name in re.findall(r"[\w.-]+(?:/|\.(?:yaml|jsonl?|html))", line)]


ENGLISH, KOREAN = sections_of(ROOT / "README.md"), sections_of(ROOT / "README.ko.md")


def test_the_headings_are_the_same_in_number_and_order() -> None:
    assert [section.level for section in KOREAN] == [section.level for section in ENGLISH]
    assert len(ENGLISH) > 8


@pytest.mark.parametrize("number", range(len(ENGLISH)), ids=[part.title for part in ENGLISH])
def test_a_section_holds_the_same_commands_figures_and_names(number: int) -> None:
    english, korean = ENGLISH[number], KOREAN[number]
    assert files(korean) == files(english)
    assert_same_code_names_and_rows(korean, english)


def korean_of(link: str) -> str:
    """Where the Korean page leads in place of `link`: to the page's translation, where there is one."""
    translated = link.removesuffix(".md") + ".ko.md"
    return translated if link.startswith("docs/") and (ROOT / translated).is_file() else link


def test_both_lead_to_the_same_pages_each_in_its_language() -> None:
    english, korean = ({link for section in sections for link in section.links} for sections in (ENGLISH, KOREAN))
    assert set(map(korean_of, english - {"README.ko.md"})) == korean - {"README.md"}
    assert "README.ko.md" in english and "README.md" in korean and "docs/data.ko.md" in korean
    for page in english | korean:
        assert (ROOT / page).is_file(), page
