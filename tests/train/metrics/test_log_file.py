"""Logs that only grow: what is damaged in one is noticed, said and dropped, and the rest stays as it is."""

import json
from pathlib import Path

import pytest

from malmoi.train.metrics.log_file import METRICS_FILE, append_line, changed_logs, cut_back, log_records

DAMAGED = {
    "torn in the middle": b'{"step": 2, "tok\n',
    "binary": b"\x00\xff\xfe\x80\n",
    "foreign": b"[3]\n",
    "without a step": b'{"loss": 1.0}\n',
    "a step that is none": b'{"step": "two"}\n',
    "deep": b"[" * 100_000 + b"\n",
}


def lines(*steps: int) -> bytes:
    return "".join(json.dumps({"step": step}) + "\n" for step in steps).encode()


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_dropped_and_counted(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / METRICS_FILE
    file.write_bytes(lines(1) + damage + lines(2, 3, 4) + b'{"step": 5')
    assert cut_back(file, 3) == 1
    assert file.read_bytes() == lines(1, 2, 3)
    assert list(tmp_path.iterdir()) == [file]


def test_a_log_that_grew_is_as_recorded_and_one_that_changed_is_named(tmp_path: Path) -> None:
    file = tmp_path / METRICS_FILE
    append_line(file, {"step": 1, "train/loss": 5.0})
    records = log_records(tmp_path)
    append_line(file, {"step": 2})
    assert list(changed_logs(tmp_path, records)) == []
    file.write_bytes(file.read_bytes().replace(b"5.0", b"4.0"))
    [said] = changed_logs(tmp_path, records)
    assert said.startswith(f"{file}: changed since it was written")
    file.write_bytes(b"")
    assert len(list(changed_logs(tmp_path, records))) == 1
    file.unlink()
    [said] = changed_logs(tmp_path, records)
    assert said.startswith(f"{file}: missing")
