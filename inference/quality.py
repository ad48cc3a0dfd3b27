"""`malmoi quality`: how varied samples are, and how much of them stands in the training text."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from rich.table import Table
from transformers import AutoTokenizer

from configs.commands import QualityOptions
from configs.errors import BadInput
from configs.schema import CorpusSettings, TextSettings
from configs.table_console import table_console
from data_prep.build import open_split
from data_prep.corpus import corpus_files, read_documents
from data_prep.encode import tokenizer_checksum
from data_prep.manifest import read_manifest, shard_folder
from inference.generate import Batching, generate, read_prompts
from inference.model_folder import load_model
from inference.shared_runs import longest_shared_runs

REPETITION_NGRAM = 4
BLEU_NGRAMS = 4


@dataclass(frozen=True)
class Variety:
    """What texts say of themselves. Words are what stands between spaces."""

    distinct_1: float
    """Different words, as a share of all words of all texts (Li et al. 2016)."""
    distinct_2: float
    """The same of pairs of words."""
    distinct_3: float
    self_bleu: float
    """Mean BLEU-4 of each text with all others as its references, 0 to 100 (Zhu et al. 2018); lower is more varied."""
    repetition: float
    """Share of a text's runs of four words that stood in it before, mean over texts (rep-4, Welleck et al. 2020)."""


@dataclass(frozen=True)
class Memorising:
    """What texts share with the training text."""

    longest: int
    """Tokens of the longest shared run of any text."""
    mean: float
    """Tokens of a text's longest shared run, mean over texts."""
    whole: float
    """Share of texts that stand in the training text from end to end."""
    longest_run: str
    """The longest run as text."""


@dataclass(frozen=True)
class Quality:
    """What `malmoi quality` prints."""

    texts: int
    words: int
    variety: Variety
    memorising: Memorising | None
    """None where no training text was named."""


def measure_quality(options: QualityOptions) -> Quality:
    """Measure `options.texts`, or samples of `options.model` without their prompts.

    Raises:
        BadInput: model, texts, prompts or shards are not usable, or do not fit each other.
    """
    try:
        import sacrebleu  # noqa: F401  # said before the samples are drawn and not after
    except ModuleNotFoundError:
        raise BadInput("sacrebleu is not installed; install it with `pip install 'malmoi[eval]'`") from None
    # The shards are looked at before samples are drawn, for the same reason.
    shards = None if options.data is None else _training_shards(Path(options.data), Path(options.model))
    texts = _sampled(options) if options.texts is None else _read(options)
    if len(texts) < 2:
        raise BadInput("variety needs two texts or more; raise --num_return_sequences, or name more --texts")
    words = [text.split() for text in texts]
    memorising = None if shards is None else _memorising(texts, shards, Path(options.model))
    return Quality(len(texts), sum(map(len, words)), variety(words), memorising)


def _sampled(options: QualityOptions) -> list[str]:
    loaded = load_model(Path(options.model))
    prompts = [options.prompt] if options.prompts_file is None else read_prompts(Path(options.prompts_file))
    samples: list[str] = []
    for drawn in generate(loaded, prompts, options, batching=Batching(options.batch)):
        begun = len(drawn.prompt.removeprefix(loaded.tokenizer.bos_token or ""))
        samples += [text[begun:] for text in drawn.samples]
    texts = [text for text in samples if text.strip()]
    if not texts:
        raise BadInput("no sample holds any text; raise --max_new_tokens")
    return texts


def _read(options: QualityOptions) -> list[str]:
    assert options.texts is not None
    reading = {entry.name: getattr(options, entry.name) for entry in fields(TextSettings)}
    settings = CorpusSettings(input=(options.texts,), **reading)
    texts = [document.text for document in read_documents(corpus_files(settings), settings) if document.text.strip()]
    if not texts:
        raise BadInput(f"{options.texts}: holds no text to measure")
    return texts


def _training_shards(data: Path, model: Path) -> Path:
    folder = shard_folder(data)
    if not (model / "tokenizer.json").is_file() or tokenizer_checksum(model) != read_manifest(folder).tokenizer:
        raise BadInput(f"{folder}: made with another tokenizer than {model}; name the shards that it was trained on")
    return folder


def variety(words: Sequence[Sequence[str]]) -> Variety:
    """The variety of two texts or more, given as words."""
    return Variety(distinct(words, 1), distinct(words, 2), distinct(words, 3), self_bleu(words), repetition(words))


def _ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def distinct(words: Sequence[Sequence[str]], length: int) -> float:
    """Different n-grams as a share of all; 0 where the texts hold none."""
    ngrams = [ngram for text in words for ngram in _ngrams(text, length)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(words: Sequence[Sequence[str]]) -> float:
    """Mean share of a text's n-grams that are repeats; texts too short for one n-gram do not count."""
    shares = []
    for text in words:
        ngrams = _ngrams(text, REPETITION_NGRAM)
        if ngrams:
            shares.append(1 - len(set(ngrams)) / len(ngrams))
    return float(np.mean(shares)) if shares else 0.0


def self_bleu(words: Sequence[Sequence[str]]) -> float:
    """Mean of sacrebleu's sentence BLEU of each text against all others; short texts count the n-grams they have."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="none", effective_order=True, max_ngram_order=BLEU_NGRAMS)
    texts = [" ".join(text) for text in words]
    scores = [
        bleu.sentence_score(text, [*texts[:number], *texts[number + 1 :]]).score for number, text in enumerate(texts)
    ]
    return float(np.mean(scores))


def _memorising(texts: Sequence[str], shards: Path, model: Path) -> Memorising:
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    runs = longest_shared_runs(ids, open_split(shards, "train"))
    longest = max(range(len(runs)), key=lambda number: runs[number].tokens)
    run = runs[longest]
    return Memorising(
        longest=run.tokens,
        mean=float(np.mean([each.tokens for each in runs])),
        whole=float(np.mean([each.tokens == len(own) for each, own in zip(runs, ids, strict=True)])),
        longest_run=tokenizer.decode(ids[longest][run.start : run.start + run.tokens]),
    )


def quality_as_json(measured: Quality) -> str:
    """One JSON object."""
    return json.dumps(asdict(measured), ensure_ascii=False)


def print_quality(options: QualityOptions, measured: Quality) -> None:
    """Show the figures as a table."""
    console = table_console()
    table = Table("figure", title=options.texts or options.model)
    table.add_column("value", justify="right")
    table.add_row("texts", f"{measured.texts:,}")
    table.add_row("words", f"{measured.words:,}")
    for name, value in asdict(measured.variety).items():
        table.add_row(name.replace("_", "-"), f"{value:.4f}")
    if measured.memorising is not None:
        table.add_row("longest shared run, tokens", f"{measured.memorising.longest:,}")
        table.add_row("mean longest shared run, tokens", f"{measured.memorising.mean:.2f}")
        table.add_row("texts shared whole", f"{100 * measured.memorising.whole:.1f}%")
    console.print(table)
    if measured.memorising is not None:
        console.print(
            f"Longest run that the training text holds too: {measured.memorising.longest_run}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
