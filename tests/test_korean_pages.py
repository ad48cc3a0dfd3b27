"""Every Korean page of the documentation says what its English page says."""

import re

import pytest

from tests.pages import DOCS
from tests.translated import FIGURE, FRACTION, SPAN, Section, assert_same_code_names_and_rows, sections_of

KOREAN = sorted(file.name.removesuffix(".ko.md") for file in DOCS.glob("*.ko.md"))


def anchor(section: Section) -> str:
    """Where a link to a section leads: to the name that its heading gives, or to the heading's own words."""
    given = re.search(r" \{ #(\S+) \}$", section.title)
    if given is not None:
        return given[1]
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", section.title).strip().lower())


def long_figures(section: Section) -> set[str]:
    """The figures of its prose that a language would not write as a word."""
    without_links = re.sub(r"\]\([^)]+\)|\{ #\S+ \}", "", section.prose)
    prose = FRACTION.sub("", SPAN.sub("", without_links))
    found = {figure.rstrip(".,").replace(",", "") for figure in FIGURE.findall(prose)}
    return {figure for figure in found if len(figure) > 1 and figure != "10"}


@pytest.mark.parametrize("name", KOREAN)
def test_a_korean_page_has_the_sections_code_tables_figures_and_links_of_the_english_one(name: str) -> None:
    english, korean = sections_of(DOCS / f"{name}.md"), sections_of(DOCS / f"{name}.ko.md")
    assert [section.level for section in korean] == [section.level for section in english]
    for translated, section in zip(korean, english, strict=True):
        assert_same_code_names_and_rows(translated, section)
        assert translated.indented == section.indented
        assert translated.links == section.links, section.title
        assert long_figures(translated) == long_figures(section), section.title
        if section.level > 1:
            assert anchor(translated) == anchor(section)


def test_the_pages_on_the_way_of_a_user_are_there_in_korean() -> None:
    on_the_way = "data training continue finetune launch generation fewshot judge serving images reliability extending"
    assert {"index", *on_the_way.split()} <= set(KOREAN)
