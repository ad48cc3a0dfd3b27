"""Settings of text: which files are read, what is filtered out, and how the tokenizer is trained."""

from dataclasses import dataclass, field
from typing import Literal

from malmoi.configs.ranges import (
    ClosedUnitInterval,
    DocumentBytes,
    FiniteNonNegative,
    NonNegativeInt,
    PositiveInt,
    TwoOrMore,
)

DocumentUnit = Literal["line", "paragraph", "file"]
Encoding = Literal["utf-8", "cp949", "euc-kr", "iso-2022-kr", "auto"]
OnError = Literal["stop", "skip"]
Quotes = Literal["auto", "csv", "none"]
UnicodeForm = Literal["NFC", "none"]


@dataclass(frozen=True)
class CleaningSettings:
    """Filters. Each is off by default, and what each removes is counted in the manifest."""

    min_chars: NonNegativeInt = 0
    """Drop documents with fewer characters; 0: keep all."""
    max_chars: NonNegativeInt = 0
    """Drop documents with more characters; 0: keep all."""
    exact_dedup: bool = False
    """Drop documents whose text was read before; takes about 100 bytes of memory a document."""
    near_dedup_threshold: ClosedUnitInterval = 0.0
    """Drop documents whose 5-word shingles have at least this Jaccard similarity to an earlier document (MinHash LSH);
    0: off. Takes about 10 kB of memory a document; needs `pip install malmoi[dedup]`."""
    min_hangul_ratio: ClosedUnitInterval = 0.0
    """Drop documents with a smaller share of Hangul among their non-space characters; 0: keep all."""
    dedup_lines: bool = False
    """Keep only the first of a document's equal lines; blank lines stay."""
    remove_emails: bool = False
    """Remove e-mail addresses from the text."""
    remove_resident_numbers: bool = False
    """Remove Korean resident registration numbers (six digits, an optional hyphen, seven digits) from the text."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation data, named as in `corpus.input`: drop documents that share a run of `decontaminate_run` letters and
    digits with any text in it; a text of 15 and more that is shorter is looked for as a whole document."""
    decontaminate_run: TwoOrMore = 30
    """Characters of such a run, without spaces and punctuation."""
    decontaminate_action: Literal["drop", "cut", "report"] = "drop"
    """cut: remove only the lines that hold such a run, and drop a document where one crosses lines; report: keep such
    documents, and only count them in the manifest."""


@dataclass(frozen=True)
class SourceSettings:
    """One source of a mixture. It has shards of its own, so changing a weight or another source rebuilds nothing."""

    name: str
    """Name in messages and metrics."""
    input: tuple[str, ...]
    """Files, folders, globs or URLs, as in `corpus.input`."""
    weight: FiniteNonNegative = 1.0
    """Sampling weight, relative to the other sources; 0: prepared and not trained on."""


@dataclass(frozen=True)
class TextSettings:
    """How files are read as text and split into documents."""

    text_field: str = "text"
    """Field or column that holds the text; dots reach into nested objects."""
    document: DocumentUnit = "line"
    """What one document is in a .txt file: a line, a paragraph (a block between blank lines), or the whole file."""
    encoding: Encoding = "utf-8"
    """Character encoding, decoded strictly; auto: a file is ISO-2022-KR if it says so, else UTF-8, else CP949."""
    quotes: Quotes = "auto"
    """What a double quote is in .csv and .tsv: csv: it encloses a field (RFC 4180); none: text; auto: csv, but text in
    a .tsv file, as NSMC's, where it is no quoting and each line has the header's number of fields without."""
    on_error: OnError = "stop"
    """On a broken line or record: stop and name it, or skip it and count it by cause."""
    max_error_rate: ClosedUnitInterval = 0.01
    """Share of skipped records above which `on_error: skip` fails too."""
    normalize: UnicodeForm = "NFC"
    """Unicode normalization of every document; macOS writes Hangul decomposed, which NFC composes."""
    max_document_bytes: DocumentBytes = 67_108_864
    """Bytes above which a document of a .txt file is split, between characters; counted in the manifest. A JSON or CSV
    record of more than four times as many bytes is an error. Bounds the memory that reading takes."""


@dataclass(frozen=True)
class CorpusSettings(TextSettings):
    """The training text."""

    input: tuple[str, ...] = ()
    """Files, folders, globs or fsspec URLs of .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow, each also
    compressed as .gz, .zst, .xz or .bz2, and folders saved by `datasets`; `package:PATH` is a file of Malmoi's own."""
    sources: tuple[SourceSettings, ...] = ()
    """Several sources with sampling weights, in place of `input`."""
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    """Filters."""


@dataclass(frozen=True)
class VocabularySettings:
    """How a tokenizer is trained."""

    vocab_size: PositiveInt = 32000
    """Number of tokens, special tokens and byte tokens included."""
    sample_bytes: PositiveInt = 100_000_000
    """UTF-8 bytes of text that the tokenizer is trained on at most; a larger corpus is sampled by hash."""
    min_character_count: NonNegativeInt = 10
    """Occurrences from which a character other than a Hangul syllable gets its own token; rarer ones become bytes."""


@dataclass(frozen=True)
class TokenizerSettings(VocabularySettings):
    """The tokenizer: trained on the corpus, or loaded from a folder."""

    path: str | None = None
    """Folder of a trained tokenizer; null: that of `init_from`, or else train one on the corpus."""
