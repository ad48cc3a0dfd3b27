"""Labeled examples: rows of files to token ids, and those to batches in a seeded order."""

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.finetune import TaskKind, TaskSettings
from malmoi.data_prep.readers.chunks import field_records_of
from malmoi.data_prep.readers.encoding import with_encoding
from malmoi.data_prep.readers.errors import BrokenRecord, RecordError, counts_by_name
from malmoi.data_prep.readers.records import unicode_text, value_of
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.data_prep.readers.spec import FieldRecord
from malmoi.errors import UserError, nearest_name_hint, one_line
from malmoi.ranks import is_main_rank
from malmoi.train.data.sample_order import permuted

DELIMITER, EXTRACT, PAD = "<delimiter>", "<extract>", "<pad>"
NO_ROW = "holds no row that can be used; write one labeled example a row"
SKIP = "set task.on_error skip to skip and count such rows"
WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})(?:\.0+)?")
"""A whole number as a text, as pandas writes it too."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedTexts:
    """Sequences of token ids."""

    ids: tuple[NDArray[np.int32], ...]
    """1-D each, from the start token to the extract token."""
    cut: int
    """Sequences that were longer than the context and lost their end, in a pair the longer text first."""


@dataclass(frozen=True)
class ExampleTokenizer:
    """A tokenizer that frames texts for a classifier."""

    tokenizer: Any
    context: int
    """Most tokens of a sequence."""

    @property
    def size(self) -> int:
        """Token ids, with those that fine-tuning adds."""
        return len(self.tokenizer)

    @property
    def pad(self) -> int:
        """The id that fills up shorter sequences on their right; never the last one that counts."""
        return int(self.tokenizer.pad_token_id)

    def encode(self, pairs: list[tuple[str, str | None]]) -> EncodedTexts:
        """Ids of texts and pairs of texts; a special token that is spelled out in one of them is text."""
        texts = [text for text, _ in pairs]
        others = [other for _, other in pairs if other is not None]
        words: dict[str, Any] = {"text": texts, **({"text_pair": others} if others else {})}
        whole = [len(ids) for ids in self.tokenizer(**words)["input_ids"]]
        fitted = self.tokenizer(**words, truncation=True, max_length=self.context)["input_ids"]
        return EncodedTexts(
            tuple(np.array(ids, dtype=np.int32) for ids in fitted), sum(length > self.context for length in whole)
        )

    def save(self, folder: Path) -> None:
        """Write the files that `AutoTokenizer` reads."""
        self.tokenizer.save_pretrained(folder)


def example_tokenizer(folder: Path, context: int) -> ExampleTokenizer:
    """The tokenizer of a model folder, with a delimiter and an extract token behind its own tokens.

    Raises:
        UserError: there is no tokenizer, or one that `tokenizers` does not read, or one without an end of text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and `tokenizers`' own alike
        raise UserError(
            f"{folder}: no tokenizer that can be loaded ({one_line(error)}); export the model again"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{folder}: its tokenizer has no tokenizer.json, which fine-tuning needs; convert it first")
    start = tokenizer.bos_token or tokenizer.eos_token
    if start is None:
        raise UserError(f"{folder}: the tokenizer has no bos_token to begin a text; set it in tokenizer_config.json")
    added = [DELIMITER, EXTRACT] + ([PAD] if tokenizer.pad_token is None else [])
    known = tokenizer.get_vocab()
    taken = [token for token in (DELIMITER, EXTRACT) if token in known]
    if taken:
        raise UserError(
            f"{folder}: its tokenizer has a token {taken[0]} already; give the model before its fine-tuning"
        )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (start, DELIMITER, EXTRACT)}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {EXTRACT}",
        pair=f"{start} $A {DELIMITER} $B {EXTRACT}",
        special_tokens=list(ids.items()),
    )
    # Text is data: a special token spelled out in it must not become one, here or where the model is served.
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.padding_side, tokenizer.truncation_side = "right", "right"
    tokenizer.model_max_length = context
    return ExampleTokenizer(tokenizer, context)


FIELDS: dict[TaskKind, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("sentence1", "sentence2"),
    "multiple_choice": ("text", "choices"),
}
Texts = tuple[str, str | None]
"""One text, or a pair with the delimiter between them."""


@dataclass(frozen=True)
class Row:
    """An example before it is encoded."""

    sequences: tuple[Texts, ...]
    """What goes through the model: one, both orders of a pair, or one for each choice."""
    answer: str | float | int
    """A class's name, a number, or the index of a choice."""
    place: str
    """`file:line`, or `file:row` where the format has no lines."""

    def texts(self, kind: TaskKind) -> tuple[str, ...]:
        """Return what the row holds: one text, a pair, or a context and its choices."""
        first = tuple(text for text in self.sequences[0] if text is not None)
        others = self.sequences[1:] if kind == "multiple_choice" else ()
        return (*first, *(choice for _, choice in others if choice is not None))


@dataclass(frozen=True)
class ExampleBatch:
    """Some examples as the model reads them, on the host."""

    ids: NDArray[np.int64]
    """`[examples x sequences, tokens]`, padded on the right, an example's sequences in a row."""
    lengths: NDArray[np.int64]
    """`[examples x sequences]`: tokens that are no padding."""
    answers: NDArray[Any]
    """`[examples]`: `int64` of a class or choice, or `float32`."""

    @property
    def sequences(self) -> int:
        """Of one example."""
        return len(self.ids) // len(self.answers)


@dataclass(frozen=True)
class Examples:
    """All examples of a file."""

    file: str
    ids: tuple[NDArray[np.int32], ...]
    """Of all sequences, an example's in a row."""
    answers: NDArray[Any]
    """`[examples]`: `int64` of a class or choice, or `float32`."""
    sequences: int
    """Of one example."""
    outputs: int
    """Numbers that the model gives for an example: a score a class or choice, or one."""
    cut: int
    """Sequences that were longer than the context."""
    pad: int

    def __len__(self) -> int:
        return len(self.answers)

    def batch(self, numbers: NDArray[np.int64]) -> ExampleBatch:
        """The examples of these numbers, in their order."""
        rows = (numbers[:, None] * self.sequences + np.arange(self.sequences)).reshape(-1)
        lengths = np.array([len(self.ids[row]) for row in rows], dtype=np.int64)
        ids = np.full((len(rows), int(lengths.max())), self.pad, dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : lengths[place]] = self.ids[row]
        return ExampleBatch(ids, lengths, self.answers[numbers])

    def in_order(self, first_sample: int, count: int, seed: int) -> ExampleBatch:
        """Samples `first_sample` on of an endless training: each epoch is a permutation of its own."""
        epochs, indices = np.divmod(np.arange(first_sample, first_sample + count, dtype=np.int64), len(self))
        numbers = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            numbers[chosen] = permuted(indices[chosen].astype(np.uint64), len(self), seed, epoch).astype(np.int64)
        return self.batch(numbers)

    def fingerprint(self) -> str:
        """What training on these examples depends on: every id and every answer."""
        hashed = hashlib.blake2b(digest_size=16)
        for ids in self.ids:
            hashed.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        hashed.update(self.answers.tobytes())
        return hashed.hexdigest()


def fields_of(task: TaskSettings) -> tuple[str, ...]:
    """The fields of a row that hold the texts, but those of `task.choices`.

    Raises:
        UserError: the settings name too few or too many.
    """
    usual = FIELDS[task.kind]
    if task.choices:
        if task.kind != "multiple_choice":
            raise UserError(f"task.choices names fields of choices, and {task.kind} has none; leave it out")
        if len(task.choices) < 2:
            raise UserError("task.choices names one field; name a field for each choice, two or more")
        usual = usual[:-1]
    named = task.fields or usual
    if len(named) < len(usual) or (len(named) > len(usual) and task.kind != "multiple_choice"):
        raise UserError(f"task.fields names {len(named)} fields; {task.kind} reads {len(usual)}, as {', '.join(usual)}")
    return named


class _RowError(Exception):
    """A row that cannot be used, and why, without its place."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def require_rows(file: str, task: TaskSettings) -> None:
    """Check that a file can be read, and that its first usable row has the fields of the settings.

    Raises:
        UserError: it cannot, holds no usable row, or a row before it cannot be used and is not to be skipped.
    """
    with closing(_usable_rows(file, task, _Skipped())) as rows:
        if next(rows, None) is None:
            raise UserError(f"{file}: {NO_ROW}")


def read_rows(file: str, task: TaskSettings) -> list[Row]:
    """The examples of a file, a folder or what else `corpus_files` finds under a name.

    Rows that cannot be used are named in one warning with their numbers by cause, where the settings skip them.

    Raises:
        UserError: a row is broken, a field is missing, a text is empty, or the answer is none; or of rows that are to
            be skipped there are more than the settings allow.
    """
    skipped = _Skipped()
    with closing(_usable_rows(file, task, skipped)) as usable:
        rows = list(islice(usable, task.limit or None))
    if skipped.causes:
        count, read = skipped.causes.total(), skipped.causes.total() + len(rows)
        counts = counts_by_name(skipped.causes)
        if count > task.max_error_rate * read:
            raise UserError(
                f"{file}: {count:,} of {read:,} rows cannot be used ({counts}; the first is {skipped.first}), more "
                f"than task.max_error_rate {task.max_error_rate}; fix them, or raise it"
            )
        if is_main_rank():
            log.warning("%s: %d of %d rows were skipped: %s; the first is %s", file, count, read, counts, skipped.first)
    if not rows:
        raise UserError(f"{file}: {NO_ROW}")
    counts_of_choices = {len(row.sequences) for row in rows}
    if len(counts_of_choices) > 1:
        odd = next(row for row in rows if len(row.sequences) != len(rows[0].sequences))
        raise UserError(
            f"{odd.place}: has {len(odd.sequences)} choices and the first row {len(rows[0].sequences)}; give all rows "
            "as many"
        )
    return rows


@dataclass
class _Skipped:
    """Rows that were passed over."""

    causes: Counter[str] = field(default_factory=Counter)
    first: str = ""
    """Place of the first, and what is wrong with it."""


def _usable_rows(file: str, task: TaskSettings, skipped: _Skipped) -> Generator[Row]:
    """Yield the rows that can be used, and count the others where the settings skip them.

    Raises:
        UserError: a row cannot be used, and the settings stop at it; or the first that is read lacks a field.
    """
    names, label = fields_of(task), task.label or ("score" if task.kind == "similarity" else "label")
    corpus = CorpusSettings(input=(file,), encoding=task.encoding, quotes=task.quotes, on_error=task.on_error)
    is_first = True
    for unread in corpus_files(corpus):
        try:
            source = with_encoding(unread, corpus)
        except UserError as error:
            raise UserError(_in_task_settings(str(error))) from error
        for record in field_records_of(source, corpus, (*names, *task.choices, label)):
            place = f"{source.name}:{record.line}" if record.line else source.name
            try:
                if isinstance(record, RecordError):
                    raise _RowError(record.cause, _in_task_settings(record.message))
                row = _row(record, place, names, label, task)
            except _RowError as error:
                # A field that the first row lacks is a wrong setting and no broken row.
                if task.on_error == "stop" or (is_first and error.cause == "field"):
                    raise UserError(f"{place}: {error}") from error
                skipped.first = skipped.first or f"{place}: {error}".partition(";")[0]
                skipped.causes[error.cause] += 1
                if isinstance(record, RecordError) and record.unreachable:
                    skipped.causes["unreachable"] += record.unreachable
            else:
                yield row
            is_first = False


def _in_task_settings(message: str) -> str:
    """Return a reader's message with the settings that fine-tuning has in place of those of a corpus."""
    return message.replace("corpus.", "task.")


def _row(record: FieldRecord, place: str, names: tuple[str, ...], label: str, task: TaskSettings) -> Row:
    answer = _value(record, label)
    if _is_null(answer) or (isinstance(answer, str) and not answer.strip()):
        raise _RowError("no_label", f"no label in '{label}'; write one, leave the row out, or {SKIP}")
    if task.kind == "multiple_choice":
        context_names = names if task.choices else names[:-1]
        context = " ".join(_text(_value(record, name), name) for name in context_names)
        choices = _choices(record, names[-1], task)
        sequences: tuple[Texts, ...] = tuple((context, choice) for choice in choices)
        number = _whole_number(answer)
        if number is None or not 0 <= number < len(choices):
            raise _RowError("type", f"the answer {answer!r} is no index of {len(choices)} choices, counted from 0")
        return Row(sequences, number, place)
    texts = [_text(_value(record, name), name) for name in names]
    if task.kind == "similarity":
        return Row(((texts[0], texts[1]), (texts[1], texts[0])), _number(answer, label), place)
    return Row(((texts[0], texts[1] if len(texts) > 1 else None),), _class_name(answer, label), place)


def _value(record: FieldRecord, name: str) -> Any:
    try:
        return value_of(record.fields, name)
    except KeyError:
        there = ", ".join(map(repr, record.names))
        hint = nearest_name_hint(name, record.names).rstrip(".")
        raise _RowError(
            "field",
            f"no field '{name}' (there are {there}){hint}{'' if hint else ';'} name it in task.fields or task.label",
        ) from None


def _is_null(value: Any) -> bool:
    """Return whether a value is none, as pandas and others write one too."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, name: str) -> str:
    if _is_null(value) or (isinstance(value, str) and not value.strip()):
        what = "empty" if isinstance(value, str) else "empty (null)"
        raise _RowError("empty", f"the text in '{name}' is {what}; fill it, leave the row out, or {SKIP}")
    if not isinstance(value, str):
        raise _RowError("type", f"'{name}' holds {value!r}, which is no text")
    try:
        return unicode_text(value)
    except BrokenRecord as broken:
        raise _RowError(broken.cause, str(broken)) from broken


def _choices(record: FieldRecord, name: str, task: TaskSettings) -> tuple[str, ...]:
    if task.choices:
        return tuple(_text(_value(record, choice), choice) for choice in task.choices)
    value = _value(record, name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _RowError("json", f"'{name}' begins as a JSON list and is none ({one_line(error)})") from error
    if not isinstance(value, list) or len(value) < 2:
        raise _RowError(
            "type",
            f"'{name}' is {value!r}; give a list of two or more texts, in CSV as JSON, or name a field for each choice "
            "in task.choices",
        )
    return tuple(_text(choice, name) for choice in value)


def _whole_number(value: Any) -> int | None:
    """Return a whole number however it is written: 1, 1.0 or a text of either."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        return int(float(value)) if "." in value else int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def _number(answer: Any, label: str) -> float:
    try:
        number = math.nan if isinstance(answer, bool) else float(answer)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _RowError("type", f"the answer {answer!r} in '{label}' is no number, which similarity needs")
    return number


def _class_name(answer: Any, label: str) -> str:
    number = _whole_number(answer)
    if number is not None:
        return str(number)
    if not isinstance(answer, str | bool):
        raise _RowError("type", f"the answer {answer!r} in '{label}' names no class; write a text or a whole number")
    return str(answer).strip()


def classes_of(rows: list[Row], task: TaskSettings) -> tuple[str, ...]:
    """Names of the classes, or of the choices, in the order of the model's outputs; none for similarity.

    Raises:
        UserError: all rows are of one class.
    """
    if task.kind == "similarity":
        return ()
    if task.kind == "multiple_choice":
        return tuple(str(number) for number in range(len(rows[0].sequences)))
    names = tuple(sorted({str(row.answer) for row in rows}))
    if len(names) < 2:
        raise UserError(f"{task.train}: every row is of class '{names[0]}'; training needs two classes or more")
    return names


def encoded(
    rows: list[Row], file: str, task: TaskSettings, classes: tuple[str, ...], tokenizer: ExampleTokenizer
) -> Examples:
    """Rows as token ids and numbers.

    Args:
        classes: those of the training file.

    Raises:
        UserError: a class is none of those, or a row has another number of choices.
    """
    if task.kind == "multiple_choice":
        if len(rows[0].sequences) != len(classes):
            raise UserError(
                f"{rows[0].place}: has {len(rows[0].sequences)} choices and those of training {len(classes)}; "
                "give as many"
            )
        answers: NDArray[Any] = np.array([row.answer for row in rows], dtype=np.int64)
    elif task.kind == "similarity":
        answers = np.array([row.answer for row in rows], dtype=np.float32)
    else:
        numbers = {name: number for number, name in enumerate(classes)}
        unseen = next((row for row in rows if row.answer not in numbers), None)
        if unseen is not None:
            raise UserError(
                f"{unseen.place}: the class '{unseen.answer}' is none of those in {task.train} "
                f"({', '.join(classes)}); add examples of it there, or leave the row out"
            )
        answers = np.array([numbers[str(row.answer)] for row in rows], dtype=np.int64)
    texts = tokenizer.encode([texts for row in rows for texts in row.sequences])
    outputs = 1 if task.kind == "similarity" else len(classes)
    return Examples(file, texts.ids, answers, len(rows[0].sequences), outputs, texts.cut, tokenizer.pad)
