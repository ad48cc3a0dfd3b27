"""Parquet, Arrow and saved datasets; a damaged file is an error, and never the end of the process."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malmoi.errors import UserError
from tests.data_prep.reading import SKIP, TRICKY, read, write
from tests.launching import run_malmoi


def test_null_in_a_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["가", None, "나"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet:2: field 'text' holds null"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", **SKIP) == ["가", "나"]


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"not a table at all")
        with pytest.raises(UserError, match=rf"{name}: no \w+ file, or a damaged one"):
            read(tmp_path / name)


READ_ROWS = """
import sys
from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.readers.sources import corpus_files
corpus = CorpusSettings(input=(sys.argv[1],), on_error="skip", max_error_rate=1.0)
print(*(document.text for document in read_documents(corpus_files(corpus), corpus)))
"""


@pytest.mark.parametrize("offset", [2**30, -(2**30)])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_damaged_offset_in_an_arrow_file_is_an_error(tmp_path: Path, offset: int, kind: str) -> None:
    """In a process of its own, which a read beyond the file would kill."""
    file = tmp_path / "a.arrow"
    table = pa.table({"text": [f"글 {number}" for number in range(500)]})
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(file), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)
    content, offsets = file.read_bytes(), table.column("text").chunk(0).buffers()[1].to_pybytes()
    assert content.count(offsets) == 1
    damaged = bytearray(content)
    place = content.index(offsets) + 4 * 301
    damaged[place : place + 4] = offset.to_bytes(4, "little", signed=True)
    file.write_bytes(damaged)
    done = subprocess.run([sys.executable, "-c", READ_ROWS, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("글 0 글 1 ") and "글 300" not in done.stdout
    assert "no arrow file, or a damaged one" in done.stderr


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_column_that_is_no_utf_8_is_an_error(tmp_path: Path, suffix: str) -> None:
    content = write(tmp_path, suffix, ["ASCII"] * 3).read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(content.replace(b"ASCII", b"AS\xffII"))
    with pytest.raises(UserError, match=rf"b{suffix}: no \w+ file, or a damaged one \(Invalid UTF8"):
        read(tmp_path / f"b{suffix}")


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    one = datasets.Dataset.from_dict({"text": TRICKY})
    one.save_to_disk(tmp_path / "one", num_shards=2)
    assert read(tmp_path / "one") == TRICKY
    datasets.DatasetDict(train=one).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "dict") == TRICKY
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"saved with several splits \(test, train\)"):
        read(tmp_path / "two")
    assert read(tmp_path / "two" / "test") == TRICKY


def test_the_remedy_for_a_file_that_is_not_compressed_is_not_to_compress_it_again(tmp_path: Path) -> None:
    table = pa.table({"text": ["영화가 재미있다 " * 50] * 400})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    file = tmp_path / "cut.arrow"
    content = sink.getvalue().to_pybytes()
    file.write_bytes(content[: len(content) // 2])
    done = run_malmoi("tokenizer", "--input", str(file), "--vocab_size", "300", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "cut.arrow: damaged arrow (" in done.stderr and "fetch or write the file again" in done.stderr
