"""Whatever changes in a recorded file is found, and a checksum of a beginning is that of the bytes."""

import io
from hashlib import blake2b
from pathlib import Path

import pytest

from malmoi import checksums
from malmoi.checksums import checksum, file_checksum, file_errors, file_findings, file_record, stream_checksum

CONTENT = bytes(range(256)) * 5
REMEDY = "fetch it again"


def test_checksums_are_blake2b_of_128_bits_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "READ_BYTES", 100)
    (tmp_path / "a").write_bytes(CONTENT)
    for length in (None, 0, 1, 99, 100, 101, len(CONTENT), len(CONTENT) + 1):
        expected = blake2b(CONTENT[:length], digest_size=16).hexdigest()
        assert file_checksum(tmp_path / "a", length) == expected
        assert stream_checksum(io.BytesIO(CONTENT), length) == expected
    assert checksum(CONTENT) == file_checksum(tmp_path / "a")


def test_every_change_of_a_recorded_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("kept", "deep/missing", "longer", "changed"):
        (tmp_path / name).write_bytes(CONTENT)
    records = [file_record(tmp_path / name, name) for name in ("kept", "deep/missing", "longer", "changed")]
    assert file_errors(tmp_path, records, REMEDY) == []
    (tmp_path / "deep/missing").unlink()
    (tmp_path / "longer").write_bytes(CONTENT + b"x")
    (tmp_path / "changed").write_bytes(CONTENT[:-1] + b"x")
    found = [(finding.kind, finding.file.name) for finding in file_findings(tmp_path, records, REMEDY)]
    assert found == [("missing", "missing"), ("size", "longer"), ("checksum", "changed")]
    assert [finding.kind for finding in file_findings(tmp_path, records, REMEDY, checksums=False)] == [
        "missing",
        "size",
    ]
    assert all(
        error.startswith(f"{tmp_path}/") and error.endswith(f"; {REMEDY}")
        for error in file_errors(tmp_path, records, REMEDY)
    )
