"""Content decides, and is read once as long as nothing says that it changed."""

import bz2
import gzip
import lzma
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from backports import zstd

from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.pipeline import fingerprint
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.pipeline.fingerprint import SourceRecord, source_records
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.errors import UserError
from tests.time_limits import seconds

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


def records(folder: Path, memory: Path, **wanted: object) -> tuple[SourceRecord, ...]:
    corpus = CorpusSettings(input=(str(folder),), **wanted)  # type: ignore[arg-type]
    return source_records(corpus_files(corpus), corpus, memory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "corpus" / name).write_text(f"{name}의 글", encoding="utf-8")
        os.utime(tmp_path / "corpus" / name, (1e9, 1e9))
    return tmp_path / "corpus"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    # The files of these tests were made just now, which alone would have each of them read again.
    monkeypatch.setattr(fingerprint, "RACY_SECONDS", 0.0)
    hash_ = fingerprint._record
    monkeypatch.setattr(fingerprint, "_record", lambda f, s: (read.append(Path(f.name).name), hash_(f, s))[1])
    return read


def test_content_is_read_again_only_where_size_or_time_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    first = records(folder, tmp_path / "out")
    assert sorted(read) == ["a.txt", "b.txt"]
    assert records(folder, tmp_path / "out") == first and len(read) == 2
    (folder / "b.txt").write_text("b.txt의 말", encoding="utf-8")
    os.utime(folder / "b.txt", (1e9 + 5, 1e9 + 5))
    second = records(folder, tmp_path / "out")
    assert read[2:] == ["b.txt"] and second[0] == first[0] and second[1].blake2b != first[1].blake2b


def test_a_file_changed_in_place_with_its_time_set_back_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    first = records(folder, tmp_path / "out")
    before = (folder / "b.txt").stat()
    with (folder / "b.txt").open("r+b") as stream:
        stream.write(b"B")
    os.utime(folder / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (folder / "b.txt").stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    second = records(folder, tmp_path / "out")
    assert read[2:] == ["b.txt"] and second[0] == first[0] and second[1].blake2b != first[1].blake2b


def test_a_backup_restored_with_its_times_is_read_again_and_has_the_same_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    first = records(folder, tmp_path / "out")
    shutil.copy2(folder / "a.txt", tmp_path / "backup")
    (tmp_path / "backup").replace(folder / "a.txt")
    (folder / "b.txt").chmod(0o600)
    assert records(folder, tmp_path / "out") == first and sorted(read[2:]) == ["a.txt", "b.txt"]
    assert records(folder, tmp_path / "out") == first and len(read) == 4


def test_a_file_whose_time_was_set_back_just_now_is_not_remembered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    monkeypatch.setattr(fingerprint, "RACY_SECONDS", seconds(60))
    records(folder, tmp_path / "out")
    records(folder, tmp_path / "out")
    assert len(read) == 4


def test_a_file_just_written_is_not_remembered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    monkeypatch.setattr(fingerprint, "RACY_SECONDS", 2.0)
    (folder / "a.txt").write_text("하나", encoding="utf-8")
    now = time.time()
    os.utime(folder / "a.txt", (now, now))
    first = records(folder, tmp_path / "out")
    # The same size and the same time, as within one tick of a coarse clock.
    (folder / "a.txt").write_text("두나", encoding="utf-8")
    os.utime(folder / "a.txt", (now, now))
    assert records(folder, tmp_path / "out")[0].blake2b != first[0].blake2b
    assert read.count("a.txt") == 2


def test_a_broken_memory_is_no_memory(folder: Path, tmp_path: Path) -> None:
    first = records(folder, tmp_path / "out")
    memory = tmp_path / "out" / fingerprint.MEMORY_FILE
    memory.write_text('{"half', encoding="utf-8")
    assert records(folder, tmp_path / "out") == first


def test_a_memory_with_another_hash_is_no_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    first = records(folder, tmp_path / "out")
    memory = tmp_path / "out" / fingerprint.MEMORY_FILE
    other = first[0].blake2b.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    memory.write_text(memory.read_text("utf-8").replace(first[0].blake2b, other), encoding="utf-8")
    assert records(folder, tmp_path / "out") == first
    assert sorted(read) == ["a.txt", "a.txt", "b.txt", "b.txt"]


def test_auto_decides_a_file_as_a_whole_and_says_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "b.txt").write_bytes(b"ascii\n" * 300_000 + "끝에만 한글".encode("cp949"))
    caplog.set_level("INFO")
    assert [record.encoding for record in records(folder, tmp_path / "out", encoding="auto")] == ["utf-8", "cp949"]
    assert "b.txt: read as CP949" in caplog.text
    # Remembered, but not for another wish.
    assert [record.encoding for record in records(folder, tmp_path / "out", encoding="auto")] == ["utf-8", "cp949"]
    assert [record.encoding for record in records(folder, tmp_path / "out")] == ["utf-8", "utf-8"]


def test_auto_takes_what_is_valid_as_both_for_utf_8(folder: Path, tmp_path: Path) -> None:
    assert len("최고".encode().decode("cp949")) == 3
    (folder / "b.txt").write_text("최고", encoding="utf-8")
    assert records(folder, tmp_path / "out", encoding="auto")[1].encoding == "utf-8"


def test_auto_takes_no_half_character_for_utf_8(folder: Path, tmp_path: Path) -> None:
    # The first two bytes of a syllable in UTF-8 are a whole one in CP949.
    (folder / "b.txt").write_bytes(b"ascii " + "가".encode()[:2])
    assert records(folder, tmp_path / "out", encoding="auto")[1].encoding == "cp949"
    (folder / "b.txt").write_bytes("가나다".encode()[:-1])
    with pytest.raises(
        UserError, match=r"b\.txt: neither UTF-8 nor CP949 from beginning to end \(CP949 to byte \d+, UTF-8 to byte"
    ):
        records(folder, tmp_path / "out", encoding="auto")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_auto_leaves_damaged_compression_to_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    content = bytearray(COMPRESS[suffix]("".join(f"문장 {number}\n" for number in range(100_000)).encode()))
    content[len(content) // 2] ^= 0xFF
    # zst has no checksum unless asked for one: there only the missing end shows.
    del content[-20:]
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(content)
    wanted = CorpusSettings(input=(str(file),), encoding="auto", on_error="skip", max_error_rate=1)
    assert [record.encoding for record in source_records(corpus_files(wanted), wanted, tmp_path / "out")] == ["utf-8"]
    list(read_documents(corpus_files(wanted), wanted))
    assert f"a.txt{suffix}: damaged {suffix[1:]}" in caplog.text
    with pytest.raises(UserError, match=rf"a\.txt\{suffix}: damaged {suffix[1:]}"):
        list(read_documents(corpus_files(wanted), replace(wanted, on_error="stop")))


def test_a_file_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    corpus = CorpusSettings(input=(str(folder),))
    files = corpus_files(corpus)
    (folder / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt: cannot be read"):
        source_records(files, corpus, tmp_path / "out")
