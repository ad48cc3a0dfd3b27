"""Labeled rows to token ids: read strictly, framed as GPT-1 did, in an order that visits each once an epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.configs.finetune import TaskKind, TaskSettings
from malmoi.errors import UserError
from malmoi.train.data.labeled import (
    DELIMITER,
    EXTRACT,
    Examples,
    ExampleTokenizer,
    classes_of,
    encoded,
    example_tokenizer,
)
from malmoi.train.data.labeled_rows import read_rows
from tests.train.labeled import read_examples, written

GOOD: dict[TaskKind, dict[str, Any]] = {
    "classification": {"text": "좋은 영화", "label": 1},
    "entailment": {"premise": "비가 온다", "hypothesis": "날이 흐리다", "label": "neutral"},
    "similarity": {"sentence1": "비가 온다", "sentence2": "비 온다", "score": 4.5},
    "multiple_choice": {"text": "비가 온다", "choices": ["우산을 편다", "옷을 벗는다"], "label": 0},
}


@pytest.fixture(scope="module")
def tokenizer(finished_run: Path) -> ExampleTokenizer:
    return example_tokenizer(finished_run / "model", 32)


def task_of(kind: TaskKind, folder: Path, *rows: dict[str, Any], **changes: Any) -> TaskSettings:
    return TaskSettings(kind=kind, train=written(folder / "train.jsonl", list(rows)), **changes)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("classification", {"text": None}, "train.jsonl:2: no field 'text'"),
        ("classification", {"label": None}, "train.jsonl:2: no field 'label'"),
        ("classification", {"text": "  "}, "train.jsonl:2: the text in 'text' is empty"),
        ("classification", {"text": 5}, "train.jsonl:2: 'text' holds 5, which is no text"),
        ("classification", {"label": 0.5}, "names no class"),
        (
            "entailment",
            {"hypothesis": None},
            "train.jsonl:2: no field 'hypothesis' (there are 'premise', 'label'); name it in task.fields or task.label",
        ),
        ("entailment", {"premise": ""}, "the text in 'premise' is empty"),
        ("similarity", {"score": "넷"}, "the answer '넷' in 'score' is no number"),
        ("multiple_choice", {"choices": ["하나"]}, "give a list of two or more texts"),
        ("multiple_choice", {"choices": ["하나", "둘", "셋"]}, "has 3 choices and the first row 2"),
        ("multiple_choice", {"label": 2}, "the answer 2 is no index of 2 choices"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(kind: TaskKind, change: dict[str, Any], says: str, tmp_path: Path) -> None:
    bad = {name: value for name, value in {**GOOD[kind], **change}.items() if value is not None}
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        task = task_of(kind, tmp_path, GOOD[kind], bad)
        read_rows(task.train, task)
    assert says in str(caught.value)


def test_a_class_that_training_has_not_seen_is_named(tokenizer: ExampleTokenizer, tmp_path: Path) -> None:
    task = task_of("classification", tmp_path, {"text": "가", "label": 0}, {"text": "나", "label": 1})
    other = written(tmp_path / "other.jsonl", [{"text": "다", "label": 1}, {"text": "라", "label": 2}])
    classes = classes_of(read_rows(task.train, task), task)
    with pytest.raises(UserError, match=r"other.jsonl:2: the class '2' is none of those in .*train.jsonl \(0, 1\)"):
        encoded(read_rows(other, task), other, task, classes, tokenizer)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    task = task_of("classification", tmp_path, GOOD["classification"])
    with pytest.raises(UserError, match="every row is of class '1'"):
        classes_of(read_rows(task.train, task), task)


def test_pairs_are_framed_by_start_delimiter_and_extract(tokenizer: ExampleTokenizer, tmp_path: Path) -> None:
    task = task_of("similarity", tmp_path, GOOD["similarity"])
    examples = read_examples(task.train, task, tokenizer)
    own = tokenizer.tokenizer
    one, other = (
        own(GOOD["similarity"][name], add_special_tokens=False)["input_ids"]
        for name in GOOD["similarity"]
        if name != "score"
    )
    start, delimiter, extract = (own.convert_tokens_to_ids(token) for token in ("<s>", DELIMITER, EXTRACT))
    assert [ids.tolist() for ids in examples.ids] == [
        [start, *one, delimiter, *other, extract],
        [start, *other, delimiter, *one, extract],
    ]


def test_a_choice_follows_its_context(tokenizer: ExampleTokenizer, tmp_path: Path) -> None:
    row = {**GOOD["multiple_choice"], "question": "결과"}
    task = task_of("multiple_choice", tmp_path, row, fields=("text", "question", "choices"))
    examples = read_examples(task.train, task, tokenizer)
    shown = [tokenizer.tokenizer.decode(ids) for ids in examples.ids]
    assert [text.replace(" ", "") for text in shown] == [
        f"<s>비가온다결과{DELIMITER}{choice}{EXTRACT}" for choice in ("우산을편다", "옷을벗는다")
    ]
    assert (examples.sequences, examples.outputs, examples.answers.tolist()) == (2, 2, [0])


@pytest.mark.parametrize("text", ["</s> 끝", DELIMITER, f"가{EXTRACT}나", "<pad>"])
def test_a_special_token_spelled_out_is_text(tokenizer: ExampleTokenizer, text: str, tmp_path: Path) -> None:
    (ids,) = tokenizer.encode([(text, None)]).ids
    special = {
        tokenizer.tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<pad>", DELIMITER, EXTRACT)
    }
    assert not special & set(ids[1:-1].tolist())
    tokenizer.save(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids.tolist()


def test_what_does_not_fit_is_cut_and_counted_and_keeps_its_frame(tokenizer: ExampleTokenizer) -> None:
    texts = tokenizer.encode([("가나다라마바사아 " * 20, "짧다"), ("짧다", "짧다")])
    own = tokenizer.tokenizer
    assert texts.cut == 1
    assert len(texts.ids[0]) == 32
    assert texts.ids[0][-1] == own.convert_tokens_to_ids(EXTRACT)
    assert own.convert_tokens_to_ids(DELIMITER) in texts.ids[0]
    assert own.decode(texts.ids[0]).endswith(f"짧다{EXTRACT}")


def examples_of(count: int) -> Examples:
    ids = tuple(np.full(2 + number % 3, number, dtype=np.int32) for number in range(count))
    return Examples("file", ids, np.arange(count), 1, 2, 0, -1)


@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 20))
def test_an_epoch_visits_each_example_once_however_it_is_cut(count: int, epoch: int, batch: int) -> None:
    examples = examples_of(count)
    uncut = examples.in_order(epoch * count, count, 42).answers.tolist()
    assert sorted(uncut) == list(range(count))
    pieces = [
        examples.in_order(epoch * count + first, min(batch, count - first), 42).answers.tolist()
        for first in range(0, count, batch)
    ]
    assert [number for piece in pieces for number in piece] == uncut


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    examples = examples_of(50)
    orders = [examples.in_order(first, 50, seed).answers.tolist() for first, seed in ((0, 42), (50, 42), (0, 43))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_rows_are_padded_on_the_right() -> None:
    batch = examples_of(4).batch(np.array([2, 0]))
    assert batch.ids.tolist() == [[2, 2, 2, 2], [0, 0, -1, -1]]
    assert batch.lengths.tolist() == [4, 2]


def test_too_many_fields_are_refused(tmp_path: Path) -> None:
    task = task_of("classification", tmp_path, GOOD["classification"], fields=("text", "more"))
    with pytest.raises(UserError, match=r"task\.fields names 2 fields; classification reads 1, as text"):
        read_rows(task.train, task)


def test_the_limit_reads_the_first_rows(tmp_path: Path) -> None:
    task = task_of("classification", tmp_path, *(GOOD["classification"] for _ in range(5)), limit=3)
    assert [row.place.rsplit(":", 1)[1] for row in read_rows(task.train, task)] == ["1", "2", "3"]
