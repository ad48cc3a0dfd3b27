"""The token ids of `tokenizers`, many times faster, for tokenizers of `malmoi.data_prep.tokenizer.train`'s pipeline.

Exact wherever Unicode versions could differ: what a code point is (letter, digit, other) and what NFC makes
of text are asked of the installed `tokenizers`, a code point at the time it is first met.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from malmoi.data_prep.tokenizer import bpe_kernel as kernel
from malmoi.data_prep.tokenizer.train import (
    BOS,
    BYTE_PIECES,
    EOS,
    SPACE,
    SPACE_ESCAPE,
    SPECIAL_TOKENS,
    untrained_tokenizer,
    with_bos_and_literal_specials,
)

MEMO_WORDS = 1 << 20
"""Words that an encoder remembers, by default: 32 MiB."""

# Text that may need NFC, together with the character before it. The characters left out (up to U+02FF, Hangul
# compatibility jamo, ideographs and Hangul syllables) never join the character before them, in any version of
# Unicode, so NFC of the whole is NFC of the pieces that begin with one, each in its place.
_MAY_NEED_NFC = re.compile(r"[^\0-\u02ff\u3131-\u318e\u4e00-\u9fa5가-힣]+")
_JAMO = range(0x1100, 0x1200)


@functools.cache
def _seconds_of_compositions(tables: ModuleType) -> frozenset[str]:
    """Characters that NFC may join to the one before them by Python's tables, those of Hangul apart."""
    decompositions = (tables.decomposition(chr(code)).split() for code in range(0x20000))
    return frozenset(chr(int(d[1], 16)) for d in decompositions if len(d) == 2 and d[0][0] != "<")


@dataclass(frozen=True, eq=False, repr=False)
class CodePoints:
    """What the installed `tokenizers` takes a code point for, asked when it is first met.

    Attributes:
        kinds: uint8 (kernel.CODE_POINTS,), see `kernel.Tables`; filled in as code points are learned.
        seconds: characters that NFC may compose with the one before them.
    """

    kinds: NDArray[np.uint8]
    seconds: frozenset[str]
    nfc: normalizers.Normalizer
    without_letters: pre_tokenizers.PreTokenizer
    without_digits: pre_tokenizers.PreTokenizer

    @classmethod
    def none_known(cls) -> "CodePoints":
        return cls(
            kinds=np.full(kernel.CODE_POINTS, kernel.UNKNOWN, np.uint8),
            seconds=_seconds_of_compositions(unicodedata),
            nfc=normalizers.NFC(),
            without_letters=pre_tokenizers.Split(Regex(r"[\p{L}\p{M}]"), "removed"),
            without_digits=pre_tokenizers.Split(Regex(r"\p{N}"), "removed"),
        )

    def learn(self, text: str) -> None:
        """Make every code point of `text` known."""
        present = np.zeros(kernel.CODE_POINTS, np.bool_)
        present[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
        new = [chr(code) for code in np.flatnonzero(present & (self.kinds == kernel.UNKNOWN))]
        # A literal `▁` is what the escape makes of it; the `▁` of the pattern is a space here.
        asked = "".join(SPACE_ESCAPE if c == SPACE else c for c in new)
        no_letters = {c for piece, _ in self.without_letters.pre_tokenize_str(asked) for c in piece}
        no_digits = {c for piece, _ in self.without_digits.pre_tokenize_str(asked) for c in piece}
        for c, spelled in zip(new, asked, strict=True):
            if c == " ":
                kind = kernel.SPACE
            elif c == "\n":
                kind = kernel.NEWLINE
            elif spelled not in no_letters:
                kind = kernel.LETTER
            elif spelled not in no_digits:
                kind = kernel.DIGIT
            else:
                kind = kernel.SIGN
            self.kinds[ord(c)] = kind | (0 if self.is_nfc_stable(c) else kernel.NFC_MAY_CHANGE)

    def is_nfc_stable(self, c: str) -> bool:
        """Return whether text made of such characters alone is left unchanged by the NFC of `tokenizers`.

        Python's tables say what composes with what. A character too new for them may compose in ways that
        they do not know either; for the others, Unicode promises that this never changes.
        """
        if ord(c) in _JAMO or c in self.seconds or unicodedata.category(c) == "Cn":
            return False
        # U+0345 comes last and U+0334 first of all combining marks: any other would trade places with one.
        return all(self.nfc.normalize_str(probe) == probe for probe in (c, f"\u0345{c}\u0334"))

    def normalize(self, text: str) -> str:
        """Return what the NFC of `tokenizers` makes of `text`."""
        pieces: list[str] = []
        done = 0
        for found in _MAY_NEED_NFC.finditer(text):
            start = max(found.start() - 1, 0)
            pieces += (text[done:start], self.nfc.normalize_str(text[start : found.end()]))
            done = found.end()
        return "".join(pieces) + text[done:]


@dataclass(frozen=True, eq=False, repr=False)
class FastEncoder:
    """Encodes documents as `tokenizers` does.

    Holds no lock and no thread: several threads may use it, and both sides of a fork.

    Attributes:
        bos, eos: ids of `<s>` and `</s>`.
        memo_words, heap_above: see `for_tokenizer`.
        idle_memos: the memo, while no call is using it.
    """

    bos: int
    eos: int
    tables: kernel.Tables
    code_points: CodePoints
    memo_words: int
    heap_above: int
    idle_memos: list[NDArray[np.uint64]] = field(default_factory=list)

    @property
    def slow_name(self) -> str:
        """See `Encoder.slow_name`."""
        return ""

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Tokenizer, memo_words: int = MEMO_WORDS, heap_above: int = kernel.HEAP_ABOVE
    ) -> "FastEncoder | None":
        """Return an encoder that gives the ids of `tokenizer`, or `None` where its pipeline is not this project's.

        Args:
            memo_words: words to remember, a power of two, at 32 bytes each; changes speed and memory only.
            heap_above: tokens of a word from which on a heap finds the merges; changes speed only.
        """
        if memo_words < 2 or memo_words & (memo_words - 1):
            raise ValueError(f"memo_words {memo_words} is no power of two above 1")
        description: dict[str, Any] = json.loads(tokenizer.to_str())
        vocab: dict[str, int] = description["model"].get("vocab", {})
        if not (tokenizer.encode_special_tokens and _is_our_pipeline(description)):
            return None
        code_points = CodePoints.none_known()
        return cls(
            bos=vocab[BOS],
            eos=vocab[EOS],
            tables=kernel.Tables(
                kinds=code_points.kinds,
                character_ids=_character_ids(vocab),
                byte_ids=np.array([vocab[piece] for piece in BYTE_PIECES], np.int32),
                merges=_merge_table(vocab, description["model"]["merges"]),
            ),
            code_points=code_points,
            memo_words=memo_words,
            heap_above=heap_above,
        )

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Encode documents, each between `<s>` and `</s>`.

        Returns:
            ids: int32 (tokens,), all documents end to end.
            lengths: int64 (documents,), tokens of each document, `<s>` and `</s>` among them.

        Raises:
            UnicodeEncodeError: a text holds half a surrogate pair, which UTF-8 cannot hold either.
        """
        units, ends = _utf_16(texts)
        findings = self._scan(units, ends)
        unknown = np.flatnonzero(findings & kernel.HOLDS_UNKNOWN).tolist()
        if unknown:
            self.code_points.learn("".join(texts[document] for document in unknown))
            findings = self._scan(units, ends)
        may_change = np.flatnonzero(findings & kernel.HOLDS_NFC_MAY_CHANGE).tolist()
        if may_change:
            normalized = list(texts)
            for document in may_change:
                normalized[document] = self.code_points.normalize(texts[document])
            self.code_points.learn("".join(normalized[document] for document in may_change))
            units, ends = _utf_16(normalized)
        ids = np.empty(3 * len(units) + 2 * len(ends) + kernel.MEMO_TOKENS, np.int32)
        lengths = np.empty(len(ends), np.int64)
        memo = self._borrow_memo()
        written = kernel.encode_documents(
            units, ends, self.tables, memo, self.bos, self.eos, self.heap_above, ids, lengths
        )
        self.idle_memos[:] = [memo]
        ids.resize(written, refcheck=False)  # gives the unused room back without a copy
        return ids, lengths

    def __reduce__(self) -> tuple[Any, ...]:
        """Send everything to another process but the memo, which it fills with the words that it meets."""
        rest = (self.bos, self.eos, self.tables, self.code_points, self.memo_words, self.heap_above)
        return FastEncoder, rest

    def _scan(self, units: NDArray[np.uint16], ends: NDArray[np.int64]) -> NDArray[np.uint8]:
        findings = np.empty(len(ends), np.uint8)
        kernel.scan(units, ends, self.tables.kinds, findings)
        return findings

    def _borrow_memo(self) -> NDArray[np.uint64]:
        """Return the memo, or a new one while another thread has it: no two calls ever write to the same."""
        try:
            return self.idle_memos.pop()
        except IndexError:
            return kernel.empty_memo(self.memo_words)


def _utf_16(texts: Iterable[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    encoded = [text.encode("utf-16-le") for text in texts]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded))) // 2
    return np.frombuffer(b"".join([*encoded, bytes(2 * kernel.PADDING_UNITS)]), np.uint16), ends


def _is_our_pipeline(description: dict[str, Any]) -> bool:
    """Return whether a tokenizer's JSON says what this module does, in all that bears on ids."""
    ours: dict[str, Any] = json.loads(untrained_tokenizer().to_str())
    model = description["model"]
    vocab = model.get("vocab", {})
    return bool(
        all(description[part] == ours[part] for part in ("normalizer", "pre_tokenizer", "truncation", "padding"))
        and {**model, "vocab": {}, "merges": []} == ours["model"]
        and vocab.keys() >= {*SPECIAL_TOKENS, *BYTE_PIECES}
        and len(set(vocab.values())) == len(vocab)
        and max(vocab.values()) < kernel.MEMO_IDS
        and all(token["special"] for token in description["added_tokens"])
        and description["post_processor"] in (None, _our_post_processor(vocab))
    )


def _our_post_processor(vocab: dict[str, int]) -> Any:
    """Return what `with_bos_and_literal_specials` sets, in a tokenizer of this vocabulary."""
    model = models.BPE(vocab={BOS: vocab[BOS]}, merges=[])
    return json.loads(with_bos_and_literal_specials(Tokenizer(model)).to_str())["post_processor"]


def _character_ids(vocab: dict[str, int]) -> NDArray[np.int32]:
    """Return `kernel.Tables.character_ids`, where a space has the id of `▁`, a literal `▁` that of its escape."""
    character_ids = np.full(kernel.CODE_POINTS, -1, np.int32)
    for token, token_id in vocab.items():
        if len(token) == 1:
            character_ids[ord(token)] = token_id
    character_ids[ord(" ")] = character_ids[ord(SPACE)]
    character_ids[ord(SPACE)] = character_ids[ord(SPACE_ESCAPE)]
    return character_ids


def _merge_table(vocab: dict[str, int], merges: list[tuple[str, str]]) -> NDArray[np.uint64]:
    """Return `kernel.Tables.merges`, at most a quarter full: most look-ups find nothing, and do so at once."""
    table = np.full((1 << (4 * len(merges) + 1).bit_length(), 2), kernel.NO_MERGE, np.uint64)
    triples = np.array([(vocab[a], vocab[b], vocab[a + b]) for a, b in merges], np.int64).reshape(-1, 3)
    kernel.fill_merges(triples, table)
    return table
