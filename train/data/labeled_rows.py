"""Labeled rows of files: the texts and the answer of each, or why it cannot be used."""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

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

NO_ROW = "holds no row that can be used; write one labeled example a row"
SKIP = "set task.on_error skip to skip and count such rows"
WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})(?:\.0+)?")
"""A whole number as a text, as pandas writes it too."""
log = logging.getLogger(__name__)

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
