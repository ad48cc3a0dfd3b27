"""The pages of the documentation, as the tests read them: their blocks of code and their command lines."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tests.launching import ROOT

DOCS = ROOT / "docs"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
COMMAND = re.compile(
    r"(?:malmoi [a-z]|accelerate launch |torchrun |docker run |apptainer run |python \S*\w|pip install ).*"
)
ENDS = {"|", ">", "&&", ";"}
"""Words after which a line is another command's, or the shell's."""


@dataclass(frozen=True)
class Page:
    """A file of `docs/`."""

    name: str

    @property
    def text(self) -> str:
        return (DOCS / self.name).read_text(encoding="utf-8")

    def blocks(self, *kinds: str) -> list[str]:
        """The fenced blocks of these kinds, such as `sh`."""
        return [block for kind, block in FENCED.findall(self.text) if kind in kinds]

    def commands(self) -> list[list[str]]:
        """The words after `malmoi` of each of its command lines in the blocks of shell."""
        lines = map(words_of, _lines("".join(self.blocks("sh"))))
        return [words[1:] for words in lines if words[:1] == ["malmoi"]]

    def command_lines(self) -> Iterator[str]:
        """Every command line: of blocks, fenced or indented, and of spans of prose and tables."""
        prose = FENCED.sub("", self.text)
        indented = [block.replace("\n    ", "\n")[4:] for block in INDENTED.findall(prose)]
        for line in _lines("\n".join([*self.blocks("sh", "text"), *indented])):
            command = re.sub(r"^(?:\w+=\S+ )+", "", line)  # without variables before it
            if COMMAND.fullmatch(command):
                yield command
        for span in SPAN.findall(INDENTED.sub("", prose)):
            line = re.sub(r"\s+", " ", span)
            # One that ends with an option or a COMMAND names it alone.
            if COMMAND.fullmatch(line) and len(line.split()) > 2 and not re.search(r" (?:--[\w.]+|COMMAND)$", line):
                yield line


def _lines(code: str) -> list[str]:
    return code.replace("\\\n", " ").splitlines()


def words_of(line: str) -> list[str]:
    """The words of the command alone, without the brackets and dots that stand for more of them."""
    words = shlex.split(line, comments=True)
    end = min((words.index(word) for word in ENDS if word in words), default=len(words))
    return [word.removeprefix("[") if word.startswith("[--") else word for word in words[:end] if word != "...]"]
