import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from malmoi.errors import UserError
from malmoi.evaluation.fewshot.task_files import built_in_tasks, load_tasks

TASK: dict[str, Any] = {
    "task": "reviews",
    "data": "rows.jsonl",
    "output_type": "multiple_choice",
    "doc_to_text": "후기: {{text}}\n평가:",
    "doc_to_choice": ["나쁨", "좋음"],
    "doc_to_target": "label",
    "metrics": ["acc"],
}
ROWS: list[Any] = [{"text": "좋아요", "label": 1}, {"text": "별로", "label": "나쁨"}]


def write(folder: Path, rows: list[Any] = ROWS, **changed: Any) -> str:
    """A task file with its rows; a field changed to None is left out."""
    fields = {name: value for name, value in {**TASK, **changed}.items() if value is not None}
    (folder / "task.yaml").write_text(yaml.safe_dump(fields, allow_unicode=True), encoding="utf-8")
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return str(folder / "task.yaml")


def test_every_built_in_task_loads_and_keeps_examples_apart() -> None:
    tasks = load_tasks(["all"])
    assert [task.settings.task for task in tasks] == list(built_in_tasks())
    assert len(tasks) == 22
    for task in tasks:
        assert len(task.documents) >= 200 and len(task.examples) >= 100
        assert not {(d.prompt, d.choices) for d in task.documents} & {(e.prompt, e.choices) for e in task.examples}
        assert task.settings.license or task.settings.arithmetic


def test_groups_patterns_and_names_give_each_task_once() -> None:
    names = [task.settings.task for task in load_tasks(["kobest", "kobest_copa", "translation_*", "topic"])]
    assert names == [
        "kobest_boolq", "kobest_copa", "kobest_sentineg", "translation_en_ko", "translation_ko_en", "topic",
    ]  # fmt: skip
    assert len(load_tasks(["arithmetic"])) == 10


def test_a_task_of_ones_own_is_a_yaml_beside_json_lines(tmp_path: Path) -> None:
    [task] = load_tasks([write(tmp_path)])
    assert task.documents[0].prompt == "후기: 좋아요\n평가:"
    assert [document.gold for document in task.documents] == [1, 0], "an index, and a choice itself"
    assert task.shares_examples and task.examples == task.documents


def test_labels_name_choices_and_rows_may_be_compressed_or_hold_the_choices(tmp_path: Path) -> None:
    rows = [
        {"text": "가", "label": "neg", "options": ["아니", "응"]},
        {"text": "나", "label": "pos", "options": ["x", "y"]},
    ]
    file = write(tmp_path, rows, data="rows.jsonl.gz", doc_to_choice="options", labels=None, doc_to_target="right")
    for row, right in zip(rows, (0, "y"), strict=True):
        row["right"] = right
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    [task] = load_tasks([file])
    assert [document.choices for document in task.documents] == [("아니", "응"), ("x", "y")]
    assert [document.gold for document in task.documents] == [0, 1]
    [task] = load_tasks([write(tmp_path, rows, labels=["neg", "pos"])])
    assert [document.gold for document in task.documents] == [0, 1]


def test_a_graded_answer_is_shown_as_the_nearest_choice_and_kept_as_a_number(tmp_path: Path) -> None:
    rows = [{"text": "가", "label": 3.6}, {"text": "나", "label": 0.0}]
    changed = {"doc_to_choice": ["0", "1", "2", "3", "4", "5"], "metrics": ["pearson"]}
    [task] = load_tasks([write(tmp_path, rows, **changed)])
    assert [(document.gold, document.value) for document in task.documents] == [(4, 3.6), (0, 0.0)]
    with pytest.raises(UserError, match=r"rows.jsonl:1: a correlation needs numbers"):
        load_tasks([write(tmp_path, [{"text": "가", "label": "높음"}], **changed)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"doc_to_text": None}, r"task.yaml: no 'doc_to_text'; add it"),
        ({"metrics": None}, r"no 'metrics'; add it"),
        ({"data": None}, r"no 'data'; name the file"),
        ({"doc_to_choice": None}, r"no 'doc_to_choice'"),
        ({"licence": "CC0"}, r"unknown field 'licence'; did you mean 'license'"),
        ({"doc_to_txt": "x"}, r"unknown field 'doc_to_txt'; did you mean 'doc_to_text'"),
        ({"metrics": ["accc"]}, r"no metric 'accc' for multiple_choice; did you mean 'acc'"),
        ({"metrics": ["bleu"]}, r"no metric 'bleu' for multiple_choice\. Choose of acc"),
        ({"metrics": "acc"}, r"task.yaml: metrics acc: give a list, each text, as \[a, b\]; see docs/fewshot.md"),
        ({"metrics": []}, r"task.yaml: metrics is empty"),
        ({"until": ["끝", ""]}, r"until is empty, or holds an empty text"),
        ({"output_type": "multiple_choices"}, r"output_type multiple_choices: give multiple_choice, generate_until"),
        ({"bleu_tokenize": "ko"}, r"bleu_tokenize ko: give 13a or char"),
        ({"doc_to_choice": [0, 1]}, r"doc_to_choice \(0, 1\): give a list, each text"),
        ({"labels": [1]}, r"1 labels for 2 choices"),
        ({"max_gen_toks": 0}, r"max_gen_toks 0: give a whole number of 1 or more"),
        ({"doc_to_text": "{{text"}, r"no valid template"),
        ({"doc_to_text": "{{text.__class__.__mro__}}"}, r"cannot be filled"),
        ({"doc_to_text": "{{text.title_of_it}}"}, r"cannot be filled"),
        ({"doc_to_text": "{{txt}}"}, r"rows.jsonl:1: no field 'txt'; did you mean 'text'"),
        ({"doc_to_target": "lable"}, r"rows.jsonl:1: no field 'lable'; did you mean 'label'"),
        ({"doc_to_target": "xyzzy"}, r"rows.jsonl:1: no field 'xyzzy'\. .*task.yaml needs it"),
        ({"data": "none.jsonl"}, r"none.jsonl: no such file"),
        ({"arithmetic": "6da"}, r"no arithmetic '6da'; did you mean '\dda'\? Choose of"),
        ({"arithmetic": "xyzzy"}, r"no arithmetic 'xyzzy'\. Choose of"),
    ],
)
def test_a_wrong_task_file_is_an_error_that_says_why(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_tasks([write(tmp_path, **changed)])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"holds no row"),
        ([ROWS[0], {"text": "  ", "label": 1}], r"rows.jsonl:2: the text of 'text' is empty"),
        ([ROWS[0], {"label": 1}], r"rows.jsonl:2: no field 'text'"),
        ([ROWS[0], {"text": "가", "label": 2}], r"rows.jsonl:2: the answer 2 is none of '나쁨', '좋음'"),
        ([ROWS[0], {"text": "가", "label": "보통"}], r"the answer '보통' is none of"),
        ([ROWS[0], '{"text": '], r"rows.jsonl:2: no valid JSON"),
        ([ROWS[0], "[1]"], r"rows.jsonl:2: no JSON object"),
    ],
)
def test_a_wrong_row_is_an_error_with_its_line(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_tasks([write(tmp_path, rows)])


def test_an_empty_answer_is_refused(tmp_path: Path) -> None:
    changed = {"output_type": "generate_until", "doc_to_choice": None, "metrics": ["f1"]}
    with pytest.raises(UserError, match=r"rows.jsonl:1: the answer in 'label' is empty"):
        load_tasks([write(tmp_path, [{"text": "가", "label": ["맞음", " "]}], **changed)])


def test_an_unknown_name_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no task 'sentimant'; did you mean 'sentiment'\?"):
        load_tasks(["sentimant"])
    with pytest.raises(UserError, match=r"^no task 'xyzzy'\. Tasks: "):
        load_tasks(["xyzzy"])
    with pytest.raises(UserError, match=r"did you mean 'kobest'"):
        load_tasks(["kobset"])
    with pytest.raises(UserError, match=r"none.yaml: no such task file"):
        load_tasks([str(tmp_path / "none.yaml")])
    (tmp_path / "b.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"b.yaml: no valid YAML"):
        load_tasks([str(tmp_path / "b.yaml")])
    with pytest.raises(UserError, match=r"two tasks are called 'topic'"):
        load_tasks(["topic", write(tmp_path, task="topic")])
