"""What a Korean page and its English one must have in common: sections, code, figures, names and links."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCED = re.compile(r"^```\w*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
FIGURE = re.compile(r"\d[\d.,]*(?:e-\d+)?[MB%]?")
FRACTION = re.compile(r"\d+분의 \d+")
"""What the English page writes as a word."""


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    level: int
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines of the fenced blocks, without comments and with every <placeholder> alike."""
        lines = "".join(FENCED.findall(self.text)).splitlines()
        return [re.sub(r"<[^>]*>", "<>", re.sub(r"(^|\s+)#.*", "", line)) for line in lines]

    @property
    def prose(self) -> str:
        return FENCED.sub("", self.text)

    @property
    def spans(self) -> set[str]:
        """The code spans, whose lines may break elsewhere."""
        return {re.sub(r"\s+", " ", span) for span in SPAN.findall(self.prose)}

    @property
    def rows(self) -> list[str]:
        """The rows of the tables."""
        return [line for line in self.text.splitlines() if line.startswith("|")]

    @property
    def indented(self) -> list[str]:
        """The lines of indented blocks."""
        return [line for line in self.prose.splitlines() if line.startswith("    ")]

    @property
    def links(self) -> list[str]:
        return sorted(re.findall(r"\]\(([^)]+)\)", self.prose))

    @property
    def title(self) -> str:
        return self.text.splitlines()[0].lstrip("# ")


def sections_of(page: Path) -> list[Section]:
    """The sections of a page, in order."""
    text = page.read_text(encoding="utf-8")
    # A comment of the shell may begin a line too.
    hidden = FENCED.sub(lambda block: re.sub(r"^#", " ", block[0], flags=re.MULTILINE), text)
    starts = [found.start() for found in re.finditer(r"^#+ ", hidden, re.MULTILINE)]
    ends = [*starts[1:], len(text)]
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return [Section(len(part) - len(part.lstrip("#")), part) for part in parts]


def figures(text: str) -> list[str]:
    """The figures of a text outside code, sorted."""
    return sorted(figure.rstrip(".,") for figure in FIGURE.findall(SPAN.sub("", text)))


def assert_same_code_names_and_rows(korean: Section, english: Section) -> None:
    """Assert that two sections hold the same commands, code spans, and rows of the same names and figures."""
    assert korean.commands == english.commands, korean.title
    assert korean.spans == english.spans, korean.spans ^ english.spans
    assert len(korean.rows) == len(english.rows), korean.title
    for translated, row in zip(korean.rows, english.rows, strict=True):
        assert sorted(SPAN.findall(translated)) == sorted(SPAN.findall(row)), translated
        assert figures(FRACTION.sub("", translated)) == figures(row), translated
