"""`malmoi judge make`: openings of held-out documents, continued by people, by models, and badly on purpose."""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from configs.commands import JudgeMakeOptions
from configs.errors import BadInput
from configs.schema import SamplingSettings
from data_prep.corpus import Document
from data_prep.encode import tokenizer_checksum
from data_prep.inspection import open_shards
from data_prep.manifest import read_manifest, shard_folder
from inference.data_option import holds_shards, text_documents
from inference.generate import generate
from inference.judge_items import Author, Item, JudgeTest
from inference.judge_openings import Opening, cut_at_word, opening_of
from inference.model_folder import LoadedModel, load_model

SPARE_OPENINGS = 4
"""Openings kept for each text that is needed: models end some texts early."""
TOKEN_ROOM = 1.5
"""Tokens drawn for each one of the person's continuation: a model's may say less with each."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """A model and how it is to write."""

    author: Author
    model: str
    texts: int
    temperature: float
    top_k: int
    top_p: float


def make_test(options: JudgeMakeOptions, tell: Callable[[str], None]) -> JudgeTest:
    """Choose openings by a seed, each for one text only, and have them continued.

    Args:
        tell: hears what is being done.

    Raises:
        BadInput: an option is out of range, a model or the data are not usable, or they give too few texts.
    """
    writers = _writers(options)
    needed = options.texts + sum(writer.texts for writer in writers)
    tell("reading documents")
    openings = choose_openings(options, needed * SPARE_OPENINGS)
    if len(openings) < needed:
        raise BadInput(
            f"{options.data}: {len(openings)} documents with an opening and {options.shortest} characters after it, "
            f"{needed} texts wanted; give more text, or lower --texts, --control or --shortest"
        )
    left = iter(openings)
    drawn = random.Random(options.seed)
    items: list[Item] = []
    loaded: tuple[str, LoadedModel] | None = None
    readers: list[tuple[PreTrainedTokenizerBase, int]] = []
    for writer in writers:
        if loaded is None or loaded[0] != writer.model:
            tell(f"loading {writer.model}")
            loaded = writer.model, load_model(Path(writer.model))
            readers.append((loaded[1].tokenizer, loaded[1].context))
        items += _written(loaded[1], writer, left, options, drawn, tell)
    # As for the models: else a long opening would mostly be followed by a person's text.
    fitting = (opening for opening in left if all(room_for(opening, *reader) >= 0 for reader in readers))
    people = list(islice(fitting, options.texts))
    if len(people) < options.texts:
        raise BadInput(f"{options.data}: {_too_few(options)}; no opening is left for the people's texts")
    items += [_item("human", "", opening, opening.continuation, 0, drawn) for opening in people]
    drawn.shuffle(items)
    return JudgeTest(_fingerprint(items), options.model, tuple(items))


def _writers(options: JudgeMakeOptions) -> list[Writer]:
    checks = {
        "texts": options.texts >= 1,
        "control": options.control >= 0,
        "control_temperature": options.control_temperature > 0,
        "length": options.length >= 1,
        "shortest": options.shortest >= 1,
        "temperature": options.temperature > 0,
        "top_k": options.top_k >= 0,
        "top_p": 0 < options.top_p <= 1,
        "tries": options.tries >= 1,
        "seed": 0 <= options.seed < 2**31,
    }
    for name, good in checks.items():
        if not good:
            raise BadInput(f"--{name} {getattr(options, name)} is out of range; see `malmoi judge make --help`")
    if len(set(options.model)) < len(options.model):
        raise BadInput("--model: names a folder twice; name each model once")
    control = options.control_model or options.model[0]
    writers = [
        Writer("model", model, options.texts, options.temperature, options.top_k, options.top_p)
        for model in options.model
    ]
    bad = Writer("control", control, options.control, options.control_temperature, 0, 1.0)
    at = 1 + options.model.index(control) if control in options.model else len(writers)
    return [*writers[:at], *([bad] if options.control else []), *writers[at:]]


def choose_openings(options: JudgeMakeOptions, most: int) -> list[Opening]:
    """Usable openings in an order drawn by the seed, no two alike, `most` or fewer.

    Raises:
        BadInput: the data cannot be read.
    """
    is_shards = holds_shards(Path(options.data))
    documents = _held_out_documents(options) if is_shards else text_documents(options.data, options)
    drawn = random.Random(options.seed)
    seen: set[str] = set()
    kept: list[Opening] = []
    for document in documents:
        opening = opening_of(document.text, document.place, options.opening, options.length, options.shortest)
        if opening is None or opening.text in seen:
            continue
        seen.add(opening.text)
        # Reservoir sampling (Vitter's algorithm R): every opening has the same chance, whatever the corpus's size.
        if len(kept) < most:
            kept.append(opening)
        elif (place := drawn.randrange(len(seen))) < most:
            kept[place] = opening
    drawn.shuffle(kept)
    return kept


def _held_out_documents(options: JudgeMakeOptions) -> Iterator[Document]:
    """The held-out documents of a shard folder, as text."""
    folder = shard_folder(Path(options.data))
    manifest = read_manifest(folder)
    if not manifest.held_out.counts.documents:
        raise BadInput(f"{folder}: holds no held-out documents; prepare with a larger data.held_out, or give text")
    fitting = [model for model in options.model if Path(model).is_dir()]
    fitting = [model for model in fitting if tokenizer_checksum(Path(model)) == manifest.tokenizer]
    if not fitting:
        raise BadInput(f"{folder}: made with another tokenizer than {options.model[0]}; give --data a file of text")
    tokenizer = AutoTokenizer.from_pretrained(fitting[0], local_files_only=True)
    number = 0
    for shard in open_shards(folder, manifest.held_out):
        for place in range(len(shard.lengths)):
            text = tokenizer.decode(shard.document(place).tolist(), skip_special_tokens=True)
            yield Document(text, f"{folder}: held-out document {number}")
            number += 1


def _written(
    loaded: LoadedModel,
    writer: Writer,
    openings: Iterator[Opening],
    options: JudgeMakeOptions,
    drawn: random.Random,
    tell: Callable[[str], None],
) -> list[Item]:
    """The texts of one writer, each of the next opening that it continues to the person's length."""
    items: list[Item] = []
    passed_over = 0
    for opening in openings:
        tell(f"{writer.model}: text {len(items) + 1} of {writer.texts}")
        seed = drawn.randrange(2**31)
        continuation = _continued(loaded, writer, opening, options.tries, seed)
        if continuation is None:
            passed_over += 1
            continue
        items.append(_item(writer.author, writer.model, opening, continuation, seed, drawn))
        if len(items) == writer.texts:
            break
    if len(items) < writer.texts:
        raise BadInput(f"{writer.model}: {_too_few(options)}; it continued {len(items)} of {writer.texts} wanted")
    if passed_over:
        log.info("%s ended or outgrew its context early after %d openings, passed over", writer.model, passed_over)
    return items


def _too_few(options: JudgeMakeOptions) -> str:
    return (
        f"too few texts reach the length of the person's at a context this long; lower --length {options.length} "
        f"and --shortest {options.shortest}, raise --tries, or give more text"
    )


def _continued(loaded: LoadedModel, writer: Writer, opening: Opening, tries: int, seed: int) -> str | None:
    """A continuation as long as the person's; none where no try is."""
    prompt = opening.prompt
    wanted = len(loaded.tokenizer(opening.continuation)["input_ids"])
    spare = room_for(opening, loaded.tokenizer, loaded.context)
    if spare < 0:
        return None
    settings = SamplingSettings(
        num_return_sequences=tries,
        max_new_tokens=min(wanted + spare, int(wanted * TOKEN_ROOM) + 8),
        temperature=writer.temperature,
        top_k=writer.top_k,
        top_p=writer.top_p,
        seed=seed,
    )
    [result] = generate(loaded, [prompt], settings)
    return first_that_is_as_long(result.samples, prompt, len(opening.continuation), writer.model)


def room_for(opening: Opening, tokenizer: PreTrainedTokenizerBase, context: int) -> int:
    """Tokens that a context has left after an opening and the person's continuation; below 0: they do not fit."""
    return context - sum(len(tokenizer(text)["input_ids"]) for text in (opening.prompt, opening.continuation))


def first_that_is_as_long(samples: Sequence[str], prompt: str, characters: int, model: str) -> str | None:
    """The first continuation that can be cut to about `characters`; none where none can.

    Args:
        samples: texts that begin with `prompt`.

    Raises:
        BadInput: one does not, so that nobody can tell where the continuation begins.
    """
    for sample in samples:
        if not sample.startswith(prompt):
            raise BadInput(f"{model}: its tokenizer does not give the text {prompt[:40]!r} back; test another model")
        cut = cut_at_word(sample[len(prompt) :].lstrip(), characters)
        if cut is not None:
            return cut
    return None


def _item(author: Author, model: str, opening: Opening, text: str, seed: int, drawn: random.Random) -> Item:
    name = f"{drawn.getrandbits(64):016x}"
    return Item(name, author, model, opening.text, text, opening.place, len(opening.continuation), seed)


def _fingerprint(items: Sequence[Item]) -> str:
    """Tells one test from another, so that answers never count for other texts."""
    return hashlib.sha256(repr(items).encode()).hexdigest()[:16]
