"""Make a blind test (`malmoi judge make`): openings continued by people, by models, and badly as a control."""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from malmoi.configs.commands import JudgeMakeOptions
from malmoi.configs.outputs import SamplingSettings
from malmoi.data_prep.pipeline.corpus import Document
from malmoi.data_prep.shards.manifest import read_manifest, shard_folder
from malmoi.data_prep.shards.token_stream import open_shards
from malmoi.data_prep.tokenizer.encode import tokenizer_checksum
from malmoi.errors import UserError
from malmoi.evaluation.evaluate import holds_shards, text_documents
from malmoi.evaluation.human_eval.items import Author, Item, JudgeTest
from malmoi.evaluation.human_eval.openings import Opening, cut_at_word, find_opening
from malmoi.inference.generate import generate
from malmoi.inference.model_folder import LoadedModel, load_model

SPARE_OPENINGS = 4
"""Openings kept for each text that is needed, since models end some texts early."""
TOKENS_PER_HUMAN_TOKEN = 1.5
"""Tokens sampled for each one of the person's continuation, since a model's may have fewer characters each."""

REPLACEMENT = "\ufffd"
"""What bytes that make no character are shown as."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """A model and how it is sampled."""

    author: Author
    model: str
    texts: int
    temperature: float
    top_k: int
    top_p: float


def make_test(options: JudgeMakeOptions, progress: Callable[[str], None]) -> JudgeTest:
    """Choose openings by a seed, each for one text only, and have models continue them.

    Args:
        progress: gets what is being done.

    Raises:
        UserError: an option is out of range, a model or the data cannot be used, or they give too few texts.
    """
    writers = _writers(options)
    needed = options.texts + sum(writer.texts for writer in writers)
    progress("reading documents")
    openings = choose_openings(options, needed * SPARE_OPENINGS)
    if len(openings) < needed:
        raise UserError(
            f"{options.data}: {len(openings)} documents with an opening and {options.min_chars} characters after it, "
            f"{needed} texts wanted; give more text, or lower --texts, --control_texts or --min_chars"
        )
    left = iter(openings)
    draw = random.Random(options.seed)
    items: list[Item] = []
    loaded: tuple[str, LoadedModel] | None = None
    partial: tuple[int, ...] = ()
    readers: list[tuple[PreTrainedTokenizerBase, int]] = []
    for writer in writers:
        if loaded is None or loaded[0] != writer.model:
            progress(f"loading {writer.model}")
            loaded = writer.model, load_model(Path(writer.model))
            partial = tokens_of_partial_characters(loaded[1].tokenizer)
            readers.append((loaded[1].tokenizer, loaded[1].context_length))
        # Sampled as flatly as the control is, they would be in every text, and a model's own texts need them.
        never = partial if writer.author == "control" else ()
        items += _continued_items(loaded[1], writer, left, options, draw, never, progress)
    # As for the models, since a long opening would else reveal a person's text.
    fitting = (opening for opening in left if all(spare_tokens(opening, *reader) >= 0 for reader in readers))
    people = list(islice(fitting, options.texts))
    if len(people) < options.texts:
        raise UserError(f"{options.data}: {_too_few(options)}; no opening is left for the people's texts")
    items += [_item("human", "", opening, opening.continuation, 0, draw) for opening in people]
    draw.shuffle(items)
    return JudgeTest(_fingerprint(items), options.model, tuple(items))


def _writers(options: JudgeMakeOptions) -> list[Writer]:
    # What the options' types cannot say; the rest is checked where they are parsed.
    checks = {
        "control_temperature": options.control_temperature > 0,
        "temperature": options.temperature > 0,
        "top_p": options.top_p > 0,
        "seed": options.seed < 2**31,
    }
    for name, is_valid in checks.items():
        if not is_valid:
            raise UserError(f"--{name} {getattr(options, name)} is out of range; see `malmoi judge make --help`")
    if len(set(options.model)) < len(options.model):
        raise UserError("--model: names a folder twice; name each model once")
    control = options.control_model or options.model[0]
    writers = [
        Writer("model", model, options.texts, options.temperature, options.top_k, options.top_p)
        for model in options.model
    ]
    if not options.control_texts:
        return writers
    # Next to the model that writes it, so that each model is loaded once.
    at = 1 + options.model.index(control) if control in options.model else len(writers)
    bad = Writer("control", control, options.control_texts, options.control_temperature, 0, 1.0)
    return [*writers[:at], bad, *writers[at:]]


def choose_openings(options: JudgeMakeOptions, most: int) -> list[Opening]:
    """Return up to `most` usable openings, all different, in an order drawn by the seed.

    Raises:
        UserError: the data cannot be read.
    """
    is_shards = holds_shards(Path(options.data))
    documents = _validation_documents(options) if is_shards else text_documents(options.data, options)
    draw = random.Random(options.seed)
    seen: set[str] = set()
    kept: list[Opening] = []
    for document in documents:
        opening = find_opening(document.text, document.place, options.opening, options.target_chars, options.min_chars)
        if opening is None or opening.text in seen or REPLACEMENT in opening.text + opening.continuation:
            continue
        seen.add(opening.text)
        # Reservoir sampling (Vitter's algorithm R): every opening has the same chance, whatever the corpus's size.
        if len(kept) < most:
            kept.append(opening)
        elif (place := draw.randrange(len(seen))) < most:
            kept[place] = opening
    draw.shuffle(kept)
    return kept


def _validation_documents(options: JudgeMakeOptions) -> Iterator[Document]:
    """Yield the documents of a shard folder's validation split, as text."""
    folder = shard_folder(Path(options.data))
    manifest = read_manifest(folder)
    if not manifest.val.counts.documents:
        raise UserError(
            f"{folder}: its validation split is empty; prepare with a larger data.val_fraction, or give text"
        )
    fitting = [model for model in options.model if Path(model).is_dir()]
    fitting = [model for model in fitting if tokenizer_checksum(Path(model)) == manifest.tokenizer]
    if not fitting:
        raise UserError(f"{folder}: made with another tokenizer than {options.model[0]}; give --data a file of text")
    tokenizer = AutoTokenizer.from_pretrained(fitting[0], local_files_only=True)
    number = 0
    for shard in open_shards(folder, manifest.val):
        for place in range(len(shard.lengths)):
            text = tokenizer.decode(shard.document(place).tolist(), skip_special_tokens=True)
            yield Document(text, f"{folder}: validation document {number}")
            number += 1


def _continued_items(
    loaded: LoadedModel,
    writer: Writer,
    openings: Iterator[Opening],
    options: JudgeMakeOptions,
    draw: random.Random,
    never: Sequence[int],
    progress: Callable[[str], None],
) -> list[Item]:
    """Return the texts of one writer: continuations of the next openings that reach the person's length."""
    items: list[Item] = []
    num_skipped = 0
    for opening in openings:
        progress(f"{writer.model}: text {len(items) + 1} of {writer.texts}")
        seed = draw.randrange(2**31)
        continuation = _continuation(loaded, writer, opening, options.candidates, seed, never)
        if continuation is None:
            num_skipped += 1
            continue
        items.append(_item(writer.author, writer.model, opening, continuation, seed, draw))
        if len(items) == writer.texts:
            break
    if len(items) < writer.texts:
        raise UserError(f"{writer.model}: {_too_few(options)}; it continued {len(items)} of {writer.texts} wanted")
    if num_skipped:
        log.info("%s: skipped %d openings that it ended early or whose context was full", writer.model, num_skipped)
    return items


def _too_few(options: JudgeMakeOptions) -> str:
    return (
        "too few continuations reach the length of the person's within the model's context; lower --target_chars "
        f"{options.target_chars} and --min_chars {options.min_chars}, raise --candidates, or give more text"
    )


def _continuation(
    loaded: LoadedModel, writer: Writer, opening: Opening, candidates: int, seed: int, never: Sequence[int]
) -> str | None:
    """Return a continuation as long as the person's; none where no candidate is."""
    prompt = opening.prompt
    wanted = len(loaded.tokenizer(opening.continuation)["input_ids"])
    spare = spare_tokens(opening, loaded.tokenizer, loaded.context_length)
    if spare < 0:
        return None
    settings = SamplingSettings(
        num_return_sequences=candidates,
        max_new_tokens=min(wanted + spare, int(wanted * TOKENS_PER_HUMAN_TOKEN) + 8),
        temperature=writer.temperature,
        top_k=writer.top_k,
        top_p=writer.top_p,
        seed=seed,
    )
    [result] = generate(loaded, [prompt], settings, never=never)
    return first_of_length(result.samples, prompt, len(opening.continuation), writer.model)


def spare_tokens(opening: Opening, tokenizer: PreTrainedTokenizerBase, context_length: int) -> int:
    """Return the tokens left in a context after an opening and the person's continuation; below 0: they do not fit."""
    return context_length - sum(len(tokenizer(text)["input_ids"]) for text in (opening.prompt, opening.continuation))


def first_of_length(samples: Sequence[str], prompt: str, characters: int, model: str) -> str | None:
    """Return the first continuation that can be cut to about `characters`; none where none can.

    Where bytes made no character it shows `�`, which would give a machine away: the next one is taken.

    Args:
        samples: texts that begin with `prompt`.

    Raises:
        UserError: one does not, so the start of its continuation is unknown.
    """
    for sample in samples:
        if not sample.startswith(prompt):
            raise UserError(f"{model}: its tokenizer does not decode to the text {prompt[:40]!r}; test another model")
        cut = cut_at_word(sample[len(prompt) :].lstrip(), characters)
        if cut is not None and REPLACEMENT not in cut:
            return cut
    return None


def tokens_of_partial_characters(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that are no whole characters by themselves, such as one byte of three."""
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    return tuple(number for number, text in enumerate(texts) if REPLACEMENT in text)


def _item(author: Author, model: str, opening: Opening, text: str, seed: int, draw: random.Random) -> Item:
    name = f"{draw.getrandbits(64):016x}"
    return Item(name, author, model, opening.text, text, opening.place, len(opening.continuation), seed)


def _fingerprint(items: Sequence[Item]) -> str:
    """Return the id of a test, so that answers never count for other texts."""
    return hashlib.sha256(repr(items).encode()).hexdigest()[:16]
