"""Whatever byte of a file with its own checksum changes, it is noticed."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.checked_json import CHECKSUM, DamagedFileError, checked_json, parse_checked_json, read_checked_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.text().filter(lambda name: name != CHECKSUM), VALUES, max_size=4)


@given(record=RECORDS)
def test_a_record_comes_back_as_it_was(record: dict[str, object]) -> None:
    assert parse_checked_json(checked_json(record)) == record


@given(record=RECORDS, data=st.data())
def test_a_flipped_bit_is_noticed(record: dict[str, object], data: st.DataObject) -> None:
    content = bytearray(checked_json(record))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError):
        parse_checked_json(bytes(content))


def test_no_bit_of_the_checksums_own_name_can_change_unnoticed() -> None:
    content = checked_json({"step": 3})
    name = content.index(CHECKSUM.encode())
    for bit in range(8 * name, 8 * (name + len(CHECKSUM))):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            parse_checked_json(bytes(damaged))


def test_names_that_are_no_text_come_back() -> None:
    record = {"files": {os.fsdecode(b"\xb0\xa1.txt"): 3}}
    assert parse_checked_json(checked_json(record)) == record


def test_a_file_of_an_older_version_has_no_checksum() -> None:
    assert parse_checked_json(b'{"step": 3, "loss": "none"}') == {"step": 3, "loss": "none"}
    assert parse_checked_json(b"{}") == {}


def test_a_cut_or_foreign_file_is_one_line_with_its_remedy(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    content = checked_json({"step": 3})
    for damaged in (content[:-2], b"", b"[3]", b"\xff\xfe", content.replace(b"3", b"4"), b"[" * 200_000):
        file.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"record\.json: damaged \(.*\); train again$"):
            read_checked_json(file, "train again")
