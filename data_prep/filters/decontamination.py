"""Documents that hold text of evaluation data, found by long runs of letters and digits that both have.

Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C, look for runs of 8 to 13 words. Korean words
take particles and are written together or apart, so the runs here are of characters, without spaces and punctuation.
"""

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malmoi.checksums import checksum
from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.chunks import (
    Position,
    bytes_of,
    chunks_of_file,
    documents_of,
    field_records_of,
)
from malmoi.data_prep.readers.encoding import with_encoding
from malmoi.data_prep.readers.errors import RecordError, error_place
from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.errors import UserError

SHORTEST = 15
"""Characters of a text from which it is looked for as a whole document, where it is shorter than a run."""
FILTER_BITS = 24
"""Of a run's hash, which exclude most runs of a corpus at once."""
MULTIPLIER, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
"""Odd numbers of splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014)."""


@dataclass(frozen=True)
class EvaluationRuns:
    """The runs of characters of all evaluation texts, as hashes."""

    length: int
    """Characters of a run."""
    hashes: NDArray[np.uint64]
    """Of runs, and of whole texts that are shorter, sorted."""
    texts: int
    """Texts of at least `SHORTEST` characters."""

    @cached_property
    def _may_hold(self) -> NDArray[np.bool_]:
        """Whether there is a hash that begins with these bits."""
        found = np.zeros(1 << FILTER_BITS, dtype=np.bool_)
        found[self.hashes >> np.uint64(64 - FILTER_BITS)] = True
        return found

    @property
    def checksum(self) -> str:
        """Of everything that decides which documents are found."""
        return checksum(self.hashes.tobytes() + str(self.length).encode())

    def found_in(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which documents share a run with an evaluation text, or are one that is shorter than a run."""
        found = np.zeros(len(texts), dtype=np.bool_)
        characters, ends = _characters_of(texts)
        starts = np.concatenate([[0], ends[:-1]])
        runs = _run_hashes(characters, self.length)
        candidates = np.flatnonzero(self._may_hold[runs >> np.uint64(64 - FILTER_BITS)])
        hits = candidates[self._holds(runs[candidates])]
        document = np.searchsorted(ends, hits, side="right")
        # Of runs that cross from one document to the next, none counts.
        found[document[hits + self.length <= ends[document]]] = True
        short = np.flatnonzero((ends - starts >= SHORTEST) & (ends - starts < self.length) & ~found)
        for row in short.tolist():
            found[row] = bool(self._holds(_whole_hash(characters[starts[row] : ends[row]]))[0])
        return found

    def _holds(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        places = np.searchsorted(self.hashes, hashes)
        places[places == len(self.hashes)] = 0
        return self.hashes[places] == hashes if len(self.hashes) else np.zeros(len(hashes), dtype=np.bool_)

    def cut_from(self, text: str) -> tuple[str | None, int]:
        """Return a document without the lines that hold evaluation text, and how many these are; None where what is
        left still holds some, across lines, or is blank."""
        lines = text.split("\n")
        found = self.found_in(lines)
        left = "\n".join(line for line, is_found in zip(lines, found.tolist(), strict=True) if not is_found)
        return (None if not left.strip() or self.found_in([left])[0] else left), int(found.sum())


def evaluation_runs(files: tuple[str, ...], length: int) -> EvaluationRuns:
    """Read evaluation data, and return its runs.

    Every text in a record counts, whatever its field is called.

    Args:
        files: as `corpus.input` names them.
        length: characters of a run.

    Raises:
        UserError: a file cannot be read, or none holds a text that is long enough to be looked for.
    """
    hashes, count = [], 0
    settings = CorpusSettings(input=files)
    for file in corpus_files(settings):
        for text in _texts_of(file, settings):
            characters, _ = _characters_of([text])
            if len(characters) < SHORTEST:
                continue
            count += 1
            is_short = len(characters) < length
            hashes.append(_whole_hash(characters) if is_short else _run_hashes(characters, length))
    if not hashes:
        raise UserError(
            f"corpus.cleaning.decontaminate {', '.join(files)}: holds no text of {SHORTEST} letters and digits or "
            "more; name files of evaluation data"
        )
    return EvaluationRuns(length, np.unique(np.concatenate(hashes)), count)


def _texts_of(unread: SourceFile, settings: CorpusSettings) -> Iterator[str]:
    """Yield every text of a file: of records all that their fields hold, at any depth, of lines what tabs separate.

    Raises:
        UserError: a record is broken.
    """
    file = with_encoding(unread, settings)
    lines = 0
    lines_of_text = READERS[file.suffix].lines
    if lines_of_text is None or lines_of_text.fields is not None:
        for record in field_records_of(file, settings, ()):
            if isinstance(record, RecordError):
                raise UserError(f"{error_place(file, record, 0)}: {record.message}")
            yield from _strings_in(record.fields)
        return
    for chunk in chunks_of_file(file, settings, Position()):
        data = bytes_of(chunk, file)
        for found in documents_of(chunk, data, file, settings):
            if isinstance(found, RecordError):
                raise UserError(f"{error_place(file, found, lines)}: {found.message}")
            yield from found.text.split("\t")


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings_in(each)


@lru_cache(maxsize=1)
def _kept_characters() -> NDArray[np.uint32]:
    """Return for each code point of Unicode what is compared in its place: a letter in lower case, a digit, or 0."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint32)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if character.isalnum():
            table[code] = ord(character.lower()[0])
    return table


def _characters_of(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return what is compared of all texts, end to end, and where each of them ends."""
    encoded = [_composed(text).encode("utf-32-le", "surrogatepass") for text in texts]
    characters = _kept_characters()[np.frombuffer(b"".join(encoded), dtype="<u4")]
    kept = characters > 0
    lengths = np.cumsum([len(each) // 4 for each in encoded], dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(kept)])
    return characters[kept], before[lengths] if len(texts) else lengths


def _composed(text: str) -> str:
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _run_hashes(characters: NDArray[np.uint32], length: int) -> NDArray[np.uint64]:
    """Return a hash of each run of `length` characters, by its first: `uint64[characters - length + 1]`.

    A polynomial in an odd number modulo 2^64, whose sums up to each character are taken for all at once; an odd number
    has an inverse there.
    """
    count = len(characters) - length + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    powers, inverses = _powers(len(characters))
    sums = np.zeros(len(characters) + 1, dtype=np.uint64)
    np.cumsum(_mixed(characters.astype(np.uint64) + np.uint64(1)) * powers[: len(characters)], out=sums[1:])
    return _mixed((sums[length:] - sums[:-length]) * inverses[:count])


def _whole_hash(characters: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return the hash of a text that is shorter than a run, `uint64[1]`; that of its beginning in a longer one is
    another."""
    lengths = np.full(1, len(characters), dtype=np.uint64)
    return _mixed(_run_hashes(characters, len(characters)) + lengths * MULTIPLIER)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * MIXER
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=2)
def _powers_of_size(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    inverse = np.uint64(pow(int(MULTIPLIER), -1, 1 << 64))
    powers, inverses = (np.full(size, base, dtype=np.uint64) for base in (MULTIPLIER, inverse))
    for each in (powers, inverses):
        each[0] = 1
        np.cumprod(each, out=each)
    return powers, inverses


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return at least `count` powers of the multiplier, and of its inverse."""
    return _powers_of_size(1 << max(16, (count - 1).bit_length()))
