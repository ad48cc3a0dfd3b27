"""JSON values are read a piece at a time, and one that is broken costs no more than it must."""

import gzip
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malmoi.data_prep.readers import json_records
from malmoi.data_prep.readers.errors import BrokenRecord, RecordError
from malmoi.data_prep.readers.json_records import MAX_DEPTH, JsonText, parse_json
from malmoi.errors import UserError
from tests.data_prep.reading import SKIP, read

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


class CountedText(io.StringIO):
    """A stream that knows how far it was read."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.length = len(text)

    @property
    def unread(self) -> int:
        return self.length - self.tell()


@given(
    values=st.lists(VALUES, max_size=6), size=st.integers(1, 40), escapes=st.booleans(), indent=st.none() | st.just(1)
)
@settings(deadline=None)
def test_any_values_are_read_whatever_is_read_at_once(
    values: list[object], size: int, escapes: bool, indent: int | None
) -> None:
    text = json.dumps(values, ensure_ascii=escapes, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "READ_CHARACTERS", size)
        parsed = JsonText(io.StringIO(text), "utf-8")
        found: list[object] = []
        assert parsed.take("[")
        while not parsed.take("]"):
            found.append(parsed.value(10**6))
            parsed.take(",")
        assert parsed.at_end()
    assert found == values


def test_what_more_text_cannot_fix_is_reported_without_reading_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "READ_CHARACTERS", 200)
    stream = CountedText('{"text": "그는 "예" 라고 했다"}' + " " * 100_000)
    with pytest.raises(BrokenRecord, match="broken JSON") as raised:
        JsonText(stream, "utf-8").value(10**6)
    assert raised.value.cause == "json"
    assert stream.unread > 90_000


def test_a_value_above_the_limit_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "READ_CHARACTERS", 200)
    stream = CountedText('"' + "가" * 100_000 + '"')
    with pytest.raises(BrokenRecord, match="an element of over 1000 characters") as raised:
        JsonText(stream, "utf-8").value(1000)
    assert raised.value.cause == "too_long"
    assert stream.unread > 90_000


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000])
def test_numbers_and_depths_that_the_parser_refuses_are_broken_json(text: str) -> None:
    with pytest.raises(BrokenRecord, match="broken JSON"):
        JsonText(io.StringIO(text), "utf-8").value(10**6)


def test_bytes_of_another_encoding_break_the_one_value_that_holds_them() -> None:
    raw = io.BytesIO(b'["\xb0\xa1", "' + "나".encode() + b'", "\\udcff"]')
    parsed = JsonText(io.TextIOWrapper(raw, "utf-8", errors="surrogateescape"), "utf-8")
    parsed.take("[")
    first = parsed.value(100)
    assert (
        isinstance(first, RecordError) and first.cause == "encoding" and "not UTF-8 (in this element)" in first.message
    )
    assert parsed.take(",") and parsed.value(100) == "나"
    # An escape that spells the same half of a pair is not of the encoding's making.
    assert parsed.take(",") and parsed.value(100) == "\udcff"


@pytest.mark.parametrize("size", [50, 10_000, 10**6])
def test_records_behind_a_break_are_estimated_by_their_share_of_the_text(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(json_records, "READ_CHARACTERS", size)
    elements = [json.dumps({"text": f"글 {number:05d}"}) for number in range(1000)]
    elements[249] = '{"text" "글"}'
    parsed = JsonText(io.StringIO(", ".join(elements)), "utf-8")
    with pytest.raises(BrokenRecord):
        for _ in range(250):
            parsed.value(1000)
            parsed.take(",")
    assert parsed.records_behind(250) == pytest.approx(750, rel=0.02)


def test_a_json_array_is_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    texts = [f"글 {number} " + "가" * (number % 50) for number in range(300)]
    for content in (
        json.dumps([{"text": text} for text in texts]),
        "\n".join(json.dumps({"text": text}) for text in texts),
    ):
        file.write_text("\ufeff " + content + "\n ", encoding="utf-8")
        for size in (1, 7, 64, 100_000):
            monkeypatch.setattr(json_records, "READ_CHARACTERS", size)
            assert read(file) == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "가"}', r"a\.json:2: the file ends inside the array"),
        ('[{"text": "가"} {"text": "나"}]', r"a\.json:2: no comma or bracket"),
        ('[{"text": "가"}] 더', r"a\.json:2: text after the end"),
        ('[{"text": "가"}, {text}]', r"a\.json:2: broken JSON"),
        ('[{"text": "가"}, {"txt": "나"}]', r"a\.json:2: no field 'text' \(it has 'txt'\); set corpus\.text_field"),
    ],
)
def test_a_broken_json_array_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.json")


def test_behind_broken_json_nothing_is_guessed_and_what_is_lost_is_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elements = [json.dumps({"text": f"글 {number:04d}", "tags": [{"text": "꼬리표"}]}) for number in range(1000)]
    elements[100] = '{"text": "그는 "예" 라고 했다", "tags": [{"text": "꼬리표"}]}'
    file = tmp_path / "a.json"
    file.write_text("[" + ",\n".join(elements) + "]", encoding="utf-8")
    assert read(file, **SKIP) == [f"글 {number:04d}" for number in range(100)]
    counted = re.search(r"(\d+) of (\d+) records were skipped: 1 json, (\d+) unreachable", caplog.text)
    assert counted is not None
    broken, records, unreachable = map(int, counted.groups())
    assert unreachable == pytest.approx(899, rel=0.05)
    assert (broken, records) == (unreachable + 1, unreachable + 101)
    said = rf"a\.json:101: broken JSON .*; the rest of the file, about {unreachable} records, is left out"
    assert re.search(said, caplog.text)
    # One broken record in 101 may be skipped; nine tenths of the corpus may not.
    with pytest.raises(
        UserError, match=rf"{broken} of {records} records are broken .*, more than corpus\.max_error_rate"
    ):
        read(file, on_error="skip", max_error_rate=0.1)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json"])
def test_a_record_nested_too_deep_is_broken_as_others_are(tmp_path: Path, suffix: str) -> None:
    before, deep, after = ({"text": text} for text in ("앞", "깊은", "뒤"))
    record = json.dumps(deep)[:-1] + f', "more": {nested(200_000)}}}'
    content = "\n".join((json.dumps(before), record, json.dumps(after))) + "\n"
    file = tmp_path / f"deep{suffix}"
    file.write_bytes(gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode())
    what = "nested more than 10000 deep; flatten or delete" if suffix != ".json" else "broken JSON"
    with pytest.raises(UserError, match=rf"deep{suffix}:2: {what}"):
        read(file)
    assert read(file, **SKIP) == (["앞", "뒤"] if suffix != ".json" else ["앞"])


@pytest.mark.parametrize("inner", ['"[[["', '"\\"{{"', '"\\\\"', "1", "", '"{', '"\\'])
@pytest.mark.parametrize("depth", [1, MAX_DEPTH, MAX_DEPTH + 1])
def test_depth_is_counted_outside_of_strings(inner: str, depth: int) -> None:
    text = "[" * depth + inner + "]" * depth
    if depth > MAX_DEPTH or inner in ('"{', '"\\'):
        with pytest.raises(BrokenRecord, match="broken JSON" if depth <= MAX_DEPTH else "nested more than"):
            parse_json(text)
        return
    value = parse_json(text)
    for _ in range(depth - 1):
        (value,) = value
    assert value == json.loads(f"[{inner}]")


def test_many_brackets_side_by_side_are_not_deep(tmp_path: Path) -> None:
    record = {"text": "글 [[[{{{" * 1000, "more": [[{}]] * MAX_DEPTH}
    file = tmp_path / "wide.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n", encoding="utf-8")
    assert read(file) == [record["text"]] * 2
    file.rename(tmp_path / "wide.json")
    assert read(tmp_path / "wide.json") == [record["text"]] * 2
