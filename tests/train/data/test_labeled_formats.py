"""Labeled rows come from whatever format people have them in, and read the same from each."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malmoi.configs.finetune import TaskSettings
from malmoi.errors import UserError
from malmoi.train.data.labeled_rows import Row, read_rows, require_rows

TEXTS = ["좋은 영화", '그는 "재미있다"고, 정말로', "지루하다", "쉼표, 그리고 \\ 빗금"]
NSMC = (
    "id\tdocument\tlabel\n"
    "9976970\t아 더빙.. 진짜 짜증나네요\t0\n"
    '3819312\t"흠...포스터보고 초딩영화줄\t1\n'
    "10265843\t너무재밓었다\t1\n"
    '9045019\t교도소 이야기구먼 ..솔직히 재미는 없다" 라고\t0\n'
    "2172111\t\t1\n"
    '5403919\t"막 걸음마 뗀 3세부터"\t0\n'
)
"""Rows in the form of NSMC: quotes that quote nothing, and an empty review."""


def table(labels: list[Any]) -> dict[str, list[Any]]:
    return {"id": list(range(len(TEXTS))), "text": TEXTS, "label": labels}


def write_delimited(file: Path, columns: dict[str, list[Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, delimiter="," if file.suffix == ".csv" else "\t")
        rows.writerows([list(columns), *zip(*columns.values(), strict=True)])


def write_json(file: Path, columns: dict[str, list[Any]]) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(json.dumps(rows, indent=1) if file.suffix == ".json" else lines, encoding="utf-8")


def write_arrow(file: Path, columns: dict[str, list[Any]]) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))


def write_saved(folder: Path, columns: dict[str, list[Any]]) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    datasets.Dataset.from_dict(columns).save_to_disk(folder, num_shards=2)


WRITERS: dict[str, Callable[[Path, dict[str, list[Any]]], None]] = {
    "rows.csv": write_delimited,
    "rows.tsv": write_delimited,
    "rows.txt": write_delimited,
    "rows.jsonl": write_json,
    "rows.json": write_json,
    "rows.parquet": lambda file, columns: pq.write_table(pa.table(columns), file, row_group_size=2),
    "rows.arrow": write_arrow,
    "saved": write_saved,
}


def rows_of(file: Path, **settings: Any) -> list[Row]:
    return read_rows(str(file), TaskSettings(train=str(file), **settings))


@pytest.mark.parametrize("labels", [[1, 0, 0, 1], ["1", "0", "0", "1"], [1.0, 0.0, 0.0, 1.0]])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows_and_classes(name: str, labels: list[Any], tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, table(labels))
    rows = rows_of(tmp_path / name)
    assert [row.sequences[0][0] for row in rows] == TEXTS
    assert [row.answer for row in rows] == ["1", "0", "0", "1"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_column_is_one_line_that_names_those_there_are(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, table([1, 0, 0, 1]))
    for wrong in ({"fields": ("document",)}, {"label": "answer"}, {"fields": ("document",), "label": "answer"}):
        with pytest.raises(
            UserError, match=r"no field '(document|answer)' \(there are 'id', 'text', 'label'\)"
        ) as said:
            rows_of(tmp_path / name, **wrong, on_error="skip", max_error_rate=1.0)
        assert "\n" not in str(said.value) and "name it in task.fields or task.label" in str(said.value)
    with pytest.raises(UserError, match=r"no field 'texte' .*; did you mean 'text'"):
        require_rows(str(tmp_path / name), TaskSettings(fields=("texte",)))


@pytest.mark.parametrize("empty", ["", " \t", None])
@pytest.mark.parametrize(
    ("name", "place"),
    [("rows.csv", "rows.csv:4"), ("rows.jsonl", "rows.jsonl:3"), ("rows.json", ".json:3"), ("rows.parquet", "t:3")],
)
def test_an_empty_text_is_named_or_skipped_and_counted(
    name: str, place: str, empty: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = table([1, 0, 0, 1])
    columns["text"] = [*TEXTS[:2], empty, TEXTS[3]]
    WRITERS[name](tmp_path / name, columns)
    with pytest.raises(UserError, match=rf"{place}: the text in 'text' is empty.*or set task\.on_error skip"):
        rows_of(tmp_path / name)
    kept = rows_of(tmp_path / name, on_error="skip", max_error_rate=0.5)
    assert [row.sequences[0][0] for row in kept] == [*TEXTS[:2], TEXTS[3]]
    assert f"{tmp_path / name}: 1 of 4 rows were skipped: 1 empty; the first is" in caplog.text
    with pytest.raises(UserError, match=r"1 of 4 rows cannot be used \(1 empty; the first is .*max_error_rate 0\.01"):
        rows_of(tmp_path / name, on_error="skip")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_a_row_without_a_label_is_named(name: str, tmp_path: Path) -> None:
    """pandas writes a column of whole numbers with a gap as one of fractions."""
    WRITERS[name](tmp_path / name, table([1.0, None, 0.0, 1.0]))
    with pytest.raises(UserError, match=r"rows\.\w+:\d: no label in 'label'"):
        rows_of(tmp_path / name)
    kept = rows_of(tmp_path / name, on_error="skip", max_error_rate=0.5)
    assert [row.answer for row in kept] == ["1", "0", "1"]


@pytest.mark.parametrize("name", ["ratings.tsv", "ratings.txt", "ratings.txt.gz"])
def test_nsmc_is_read_as_it_is_distributed(name: str, tmp_path: Path) -> None:
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(NSMC.encode()))
    with pytest.raises(UserError, match=rf"{name}:6: the text in 'document' is empty"):
        rows_of(tmp_path / name, fields=("document",))
    rows = rows_of(tmp_path / name, fields=("document",), on_error="skip", max_error_rate=0.5)
    expected = [line.split("\t") for line in NSMC.splitlines()[1:] if "\t\t" not in line]
    assert [(row.sequences[0][0], row.answer) for row in rows] == [(text, label) for _, text, label in expected]
    assert [row.place for row in rows] == [f"{tmp_path / name}:{line}" for line in (2, 3, 4, 5, 7)]


def test_quotes_that_join_lines_of_a_table_with_tabs_lose_no_row(tmp_path: Path) -> None:
    """As quoting these three lines would be one row of three fields, with nothing to notice."""
    file = tmp_path / "rows.tsv"
    file.write_text('id\ttext\tlabel\n1\t"좋다\t1\n2\t그저 그렇다\t1\n3\t나쁘다"\t0\n', encoding="utf-8")
    assert [row.sequences[0][0] for row in rows_of(file)] == ['"좋다', "그저 그렇다", '나쁘다"']
    assert len(rows_of(file, quotes="csv")) == 1
    file.write_text('id\ttext\tlabel\n1\t"줄\n바꿈과\t탭"\t1\n2\t"그는 ""안녕"" 했다"\t0\n', encoding="utf-8")
    assert [row.sequences[0][0] for row in rows_of(file)] == ["줄\n바꿈과\t탭", '그는 "안녕" 했다']


def test_broken_rows_of_csv_are_named_by_their_line_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('text,label\n"두 줄\n글",1\n나쁘다,0,0\n"열린,1\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\.csv:4: 3 fields under a header of 2"):
        rows_of(file)
    file.write_text('text,label\n"두 줄\n글",1\n"열린,1\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\.csv:4: broken CSV .*set task\.quotes none where they are text"):
        rows_of(file)
    assert [row.sequences[0][0] for row in rows_of(file, on_error="skip", max_error_rate=0.5)] == ["두 줄\n글"]


def test_cp949_is_read_and_its_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("text,label\n똠방각하,긍정\n나쁘다,부정\n".encode("cp949"))
    with pytest.raises(UserError, match=r"rows\.csv:2: not UTF-8 \(line 2\); set task\.encoding"):
        rows_of(file)
    for encoding in ("cp949", "auto"):
        assert [row.answer for row in rows_of(file, encoding=encoding)] == ["긍정", "부정"]


def test_choices_are_a_list_a_json_text_or_a_field_each(tmp_path: Path) -> None:
    choices = ["우산을 편다", "옷을 벗는다"]
    write_delimited(tmp_path / "a.csv", {"text": ["비"], "choices": [json.dumps(choices)], "label": ["1"]})
    pq.write_table(pa.table({"text": ["비"], "choices": [choices], "label": [1]}), tmp_path / "b.parquet")
    each = {"text": ["비"], "one": [choices[0]], "two": [choices[1]], "label": [1]}
    write_delimited(tmp_path / "c.tsv", each)
    found = [rows_of(tmp_path / name, kind="multiple_choice") for name in ("a.csv", "b.parquet")]
    found.append(rows_of(tmp_path / "c.tsv", kind="multiple_choice", choices=("one", "two")))
    assert [[(row.sequences, row.answer) for row in rows] for rows in found] == [
        [((("비", choices[0]), ("비", choices[1])), 1)]
    ] * 3
    with pytest.raises(UserError, match=r"c\.tsv:2: no field 'choices' \(there are 'text', 'one', 'two', 'label'\)"):
        rows_of(tmp_path / "c.tsv", kind="multiple_choice")


def test_scores_are_numbers_in_every_format_and_fields_may_be_nested(tmp_path: Path) -> None:
    write_delimited(tmp_path / "a.csv", {"sentence1": ["가"], "sentence2": ["나"], "score": ["4.25"]})
    nested = {"pair": [{"one": "가", "two": "나"}], "score": [4.25]}
    pq.write_table(pa.table(nested), tmp_path / "b.parquet")
    write_json(tmp_path / "c.jsonl", nested)
    plain = rows_of(tmp_path / "a.csv", kind="similarity")
    for name in ("b.parquet", "c.jsonl"):
        rows = rows_of(tmp_path / name, kind="similarity", fields=("pair.one", "pair.two"))
        assert [(row.sequences, row.answer) for row in rows] == [(row.sequences, row.answer) for row in plain]
    write_delimited(tmp_path / "a.csv", {"sentence1": ["가"], "sentence2": ["나"], "score": ["nan"]})
    with pytest.raises(UserError, match=r"a\.csv:2: the answer 'nan' in 'score' is no number"):
        rows_of(tmp_path / "a.csv", kind="similarity")


def test_saved_splits_and_plain_text_name_what_to_do(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    one = datasets.Dataset.from_dict(table([1, 0, 0, 1]))
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match=r"saved with several splits \(test, train\)"):
        rows_of(tmp_path / "both")
    assert len(rows_of(tmp_path / "both" / "train")) == 4
    (tmp_path / "plain.txt").write_text("그저 글이다.\n둘째 줄.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"plain\.txt:2: no field 'label' \(there are '그저 글이다\.'\)"):
        rows_of(tmp_path / "plain.txt")


def test_half_of_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d 글", "label": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:1: half of a surrogate pair"):
        rows_of(tmp_path / "a.jsonl")
