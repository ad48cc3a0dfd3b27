"""What is removed from one document's text, and which documents are dropped for what they are."""

import re
import unicodedata
from collections import Counter
from typing import Literal

from malmoi.configs.corpus import CorpusSettings

Cleaned = Literal[
    "too_short",
    "too_long",
    "little_hangul",
    "emptied",
    "exact_duplicate",
    "near_duplicate",
    "contaminated",
    "repeated_line",
    "email",
    "resident_number",
    "contaminated_line",
    "contaminated_kept",
]
"""Why a document was dropped, down to `contaminated`, or what was removed from its text; `contaminated_kept` counts
documents that are reported and kept."""
DROPPED: tuple[Cleaned, ...] = (
    "too_short",
    "too_long",
    "little_hangul",
    "emptied",
    "exact_duplicate",
    "near_duplicate",
    "contaminated",
)
"""Those that count documents; the others count pieces of text."""

# The domain's last label is letters, so that a Korean particle after it is kept.
EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
# A possible date of birth, then the digit of sex and century (1-8; 9 and 0 before 1900), then six more.
RESIDENT_NUMBER = re.compile(
    r"(?<![0-9])[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]) ?-? ?[0-9][0-9]{6}(?![0-9])"
)
HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")


class Cleaner:
    """Cleans documents by the settings and counts what it removes."""

    def __init__(self, settings: CorpusSettings) -> None:
        self._form, self._wanted = settings.normalize, settings.cleaning
        self.counts: Counter[Cleaned] = Counter()

    def clean(self, text: str) -> str | None:
        """Return what remains of a document's text, or none where the document is dropped."""
        wanted = self._wanted
        if self._form == "NFC" and not (text.isascii() or unicodedata.is_normalized("NFC", text)):
            text = unicodedata.normalize("NFC", text)
        if wanted.remove_emails and "@" in text:
            text = self._without(EMAIL, "email", text)
        if wanted.remove_resident_numbers:
            text = self._without(RESIDENT_NUMBER, "resident_number", text)
        if wanted.dedup_lines and "\n" in text:
            text = self._without_repeated_lines(text)
        if not text or text.isspace():
            self.counts["emptied"] += 1
            return None
        if len(text) < wanted.min_chars:
            self.counts["too_short"] += 1
            return None
        if wanted.max_chars and len(text) > wanted.max_chars:
            self.counts["too_long"] += 1
            return None
        if wanted.min_hangul_ratio and hangul_ratio(text) < wanted.min_hangul_ratio:
            self.counts["little_hangul"] += 1
            return None
        return text

    def _without(self, pattern: re.Pattern[str], name: Cleaned, text: str) -> str:
        text, count = pattern.subn("", text)
        if count:
            self.counts[name] += count
        return text

    def _without_repeated_lines(self, text: str) -> str:
        lines = text.split("\n")
        seen: set[str] = set()
        kept = []
        for line in lines:
            if line and not line.isspace():
                if line in seen:
                    continue
                seen.add(line)
            kept.append(line)
        if len(kept) < len(lines):
            self.counts["repeated_line"] += len(lines) - len(kept)
        return "\n".join(kept)


def hangul_ratio(text: str) -> float:
    """Return the share of Hangul, syllables and jamo, among the characters that are no white space; of none, 0."""
    written = sum(map(len, text.split()))
    return len(HANGUL.findall(text)) / written if written else 0.0
