"""Diversity of samples, and how much of them is copied from the training text: `malmoi quality`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from transformers import AutoTokenizer

from malmoi.configs.commands import QualityOptions
from malmoi.console import table_console
from malmoi.data_prep.shards.manifest import read_manifest, shard_folder
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.data_prep.tokenizer.encode import tokenizer_checksum
from malmoi.errors import UserError
from malmoi.evaluation.evaluate import text_documents
from malmoi.evaluation.memorization import longest_matches
from malmoi.inference.generate import read_prompts, sample_prompts
from malmoi.inference.model_folder import load_model

REPETITION_NGRAM = 4
BLEU_NGRAMS = 4


@dataclass(frozen=True)
class Diversity:
    """How varied texts are. Words are separated by white space."""

    distinct_1: float
    """Distinct words as a fraction of all words of all texts (Li et al. 2016)."""
    distinct_2: float
    """The same for pairs of words."""
    distinct_3: float
    self_bleu: float
    """Mean BLEU-4 of each text against all others as references, 0 to 100 (Zhu et al. 2018); lower is more diverse."""
    rep_4: float
    """Fraction of a text's 4-grams that repeat an earlier one, mean over texts (Welleck et al. 2020)."""


@dataclass(frozen=True)
class Memorization:
    """What texts share verbatim with the training text."""

    max_match_tokens: int
    """Tokens of the longest match of any text."""
    mean_match_tokens: float
    """Tokens of a text's longest match, mean over texts."""
    verbatim_fraction: float
    """Fraction of texts of which every token is in one match."""
    longest_match: str
    """The longest match as text."""


@dataclass(frozen=True)
class Quality:
    """What `malmoi quality` prints."""

    texts: int
    words: int
    diversity: Diversity
    memorization: Memorization | None
    """None where no training text was named."""


def measure_quality(options: QualityOptions) -> Quality:
    """Measure `options.texts`, or samples of `options.model` without their prompts.

    Raises:
        UserError: model, texts, prompts or shards cannot be used, or do not fit each other.
    """
    try:
        import sacrebleu  # noqa: F401  # its absence is reported before samples are generated and not after
    except ModuleNotFoundError:
        raise UserError("sacrebleu is not installed; install it with `pip install 'malmoi[eval]'`") from None
    # The shards are checked before samples are generated, for the same reason.
    shards = None if options.data is None else _training_shards(Path(options.data), Path(options.model))
    texts = [text for text in (_samples(options) if options.texts is None else _given(options)) if text.strip()]
    if not texts:
        remedy = "raise --max_new_tokens" if options.texts is None else "name other --texts"
        raise UserError(f"{options.texts or options.model}: no text to measure; {remedy}")
    if len(texts) < 2:
        raise UserError("diversity needs two texts or more; raise --num_return_sequences, or name more --texts")
    words = [text.split() for text in texts]
    memorization = None if shards is None else _memorization(texts, shards, Path(options.model))
    return Quality(len(texts), sum(map(len, words)), diversity(words), memorization)


def _samples(options: QualityOptions) -> Iterator[str]:
    loaded = load_model(options.model)
    prompts = [options.prompt] if options.prompts_file is None else read_prompts(Path(options.prompts_file))
    for result in sample_prompts(loaded, prompts, options, batch_size=options.batch_size):
        start = len(result.prompt.removeprefix(loaded.tokenizer.bos_token or ""))
        yield from (text[start:] for text in result.samples)


def _given(options: QualityOptions) -> Iterator[str]:
    return (document.text for document in text_documents(options.texts or "", options))


def _training_shards(data: Path, model: Path) -> Path:
    folder = shard_folder(data)
    if not (model / "tokenizer.json").is_file() or tokenizer_checksum(model) != read_manifest(folder).tokenizer:
        raise UserError(f"{folder}: made with another tokenizer than {model}; name the shards that it was trained on")
    return folder


def diversity(words: Sequence[Sequence[str]]) -> Diversity:
    """Return the diversity of two texts or more, each given as its words."""
    return Diversity(distinct(words, 1), distinct(words, 2), distinct(words, 3), self_bleu(words), repetition(words))


def _ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def distinct(words: Sequence[Sequence[str]], length: int) -> float:
    """Return distinct n-grams as a fraction of all; 0 where the texts hold none."""
    ngrams = [ngram for text in words for ngram in _ngrams(text, length)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(words: Sequence[Sequence[str]]) -> float:
    """Return the mean fraction of a text's 4-grams that are repeats; texts shorter than that do not count."""
    fractions = []
    for text in words:
        ngrams = _ngrams(text, REPETITION_NGRAM)
        if ngrams:
            fractions.append(1 - len(set(ngrams)) / len(ngrams))
    return float(np.mean(fractions)) if fractions else 0.0


def self_bleu(words: Sequence[Sequence[str]]) -> float:
    """Return the mean of sacrebleu's sentence BLEU of each text against all others.

    The order of n-grams is effective: a text that is too short for 4-grams is scored on those that it has.
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="none", effective_order=True, max_ngram_order=BLEU_NGRAMS)
    texts = [" ".join(text) for text in words]
    scores = [
        bleu.sentence_score(text, [*texts[:number], *texts[number + 1 :]]).score for number, text in enumerate(texts)
    ]
    return float(np.mean(scores))


def _memorization(texts: Sequence[str], shards: Path, model: Path) -> Memorization:
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    matches = longest_matches(ids, open_split(shards, "train"))
    longest = max(range(len(matches)), key=lambda number: matches[number].tokens)
    match = matches[longest]
    return Memorization(
        max_match_tokens=match.tokens,
        mean_match_tokens=float(np.mean([each.tokens for each in matches])),
        verbatim_fraction=float(np.mean([each.tokens == len(own) for each, own in zip(matches, ids, strict=True)])),
        longest_match=tokenizer.decode(ids[longest][match.start : match.start + match.tokens]),
    )


def quality_as_json(measured: Quality) -> str:
    """Return one JSON object."""
    return json.dumps(asdict(measured), ensure_ascii=False)


def print_quality(options: QualityOptions, measured: Quality) -> None:
    """Print the values as a table."""
    console = table_console()
    table = Table("metric", title=options.texts or options.model)
    table.add_column("value", justify="right")
    table.add_row("texts", f"{measured.texts:,}")
    table.add_row("words", f"{measured.words:,}")
    for name, value in asdict(measured.diversity).items():
        table.add_row(name.replace("_", "-"), f"{value:.4f}")
    memorization = measured.memorization
    if memorization is None:
        console.print(table)
        return
    table.add_row("longest match with the training text, tokens", f"{memorization.max_match_tokens:,}")
    table.add_row("longest match of a text, mean tokens", f"{memorization.mean_match_tokens:.2f}")
    table.add_row("texts copied verbatim", f"{100 * memorization.verbatim_fraction:.1f}%")
    console.print(table)
    console.print(
        f"Longest match with the training text: {memorization.longest_match}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
