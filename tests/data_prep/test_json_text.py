"""JSON values are read a piece at a time, and one that is broken costs no more than it must."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import json_text
from data_prep.faults import BrokenRecord, Fault
from data_prep.json_text import JsonText

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
        patch.setattr(json_text, "READ_CHARACTERS", size)
        parsed = JsonText(io.StringIO(text), "utf-8")
        found: list[object] = []
        assert parsed.take("[")
        while not parsed.take("]"):
            found.append(parsed.value(10**6))
            parsed.take(",")
        assert parsed.at_end()
    assert found == values


def test_what_more_text_cannot_mend_is_told_without_reading_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "READ_CHARACTERS", 200)
    stream = CountedText('{"text": "그는 "예" 라고 했다"}' + " " * 100_000)
    with pytest.raises(BrokenRecord, match="broken JSON") as told:
        JsonText(stream, "utf-8").value(10**6)
    assert told.value.cause == "json"
    assert stream.unread > 90_000


def test_a_value_above_the_limit_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "READ_CHARACTERS", 200)
    stream = CountedText('"' + "가" * 100_000 + '"')
    with pytest.raises(BrokenRecord, match="an element of over 1000 characters") as told:
        JsonText(stream, "utf-8").value(1000)
    assert told.value.cause == "too_long"
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
    assert isinstance(first, Fault) and first.cause == "encoding" and "not UTF-8 (in this element)" in first.message
    assert parsed.take(",") and parsed.value(100) == "나"
    # An escape that spells the same half of a pair is not of the encoding's making.
    assert parsed.take(",") and parsed.value(100) == "\udcff"


@pytest.mark.parametrize("size", [50, 10_000, 10**6])
def test_records_behind_a_break_are_estimated_by_their_share_of_the_text(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(json_text, "READ_CHARACTERS", size)
    elements = [json.dumps({"text": f"글 {number:05d}"}) for number in range(1000)]
    elements[249] = '{"text" "글"}'
    parsed = JsonText(io.StringIO(", ".join(elements)), "utf-8")
    with pytest.raises(BrokenRecord):
        for _ in range(250):
            parsed.value(1000)
            parsed.take(",")
    assert parsed.records_behind(250) == pytest.approx(750, rel=0.02)
