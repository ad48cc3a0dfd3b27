"""CSV, JSON arrays, Parquet, Arrow and saved datasets give the texts that were written, whatever they hold."""

import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import BadInput
from configs.schema import CorpusSettings
from data_prep import json_text
from data_prep.chunks import Position, RowChunk, chunks_of
from data_prep.corpus import corpus_files, read_documents
from tests.launching import malmoi

TEXTS = st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, max_size=8)
TRICKY = ['따옴표 " 하나', "쉼표, 줄\n바꿈", "탭\t과 \\ 빗금", " 앞뒤 공백 ", "보통 글"]


def read(path: Path | str, **wanted: object) -> list[str]:
    corpus = CorpusSettings(input=(str(path),), normalise="none", **wanted)  # type: ignore[arg-type]
    return [document.text for document in read_documents(corpus_files(corpus), corpus)]


def write(folder: Path, suffix: str, texts: list[str]) -> Path:
    file = folder / f"table{suffix}"
    table = pa.table({"id": list(range(len(texts))), "text": texts})
    if suffix == ".parquet":
        pq.write_table(table, file, row_group_size=2)
    elif suffix == ".arrow":
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    elif suffix == ".json":
        file.write_text(json.dumps([{"id": 1, "text": text} for text in texts], ensure_ascii=False, indent=1))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([["id", "text"], *enumerate(texts)])
    return file


SKIP: dict[str, object] = {"on_error": "skip", "largest_skipped_share": 1.0}
SUFFIXES = [".csv", ".tsv", ".json", ".parquet", ".arrow"]


@given(texts=TEXTS, suffix=st.sampled_from(SUFFIXES))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read(texts: list[str], suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # A CR in a CSV cell is kept by the reader only inside quotes, where csv.writer puts it; NUL is refused by csv.
    if suffix in (".csv", ".tsv"):
        texts = [text.replace("\0", "") or "글" for text in texts]
        texts = [text if text.strip() else "글" for text in texts]
    assert read(write(tmp_path_factory.getbasetemp(), suffix, texts)) == texts


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compressed_tables(tmp_path: Path, suffix: str) -> None:
    plain = write(tmp_path, suffix, TRICKY)
    packed = tmp_path / f"packed{suffix}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(packed) == read(plain) == TRICKY


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_goes_on_from_any_row(tmp_path: Path, suffix: str) -> None:
    corpus = CorpusSettings(input=(str(write(tmp_path, suffix, TRICKY)),))
    (chunk,) = chunks_of(corpus_files(corpus), ["utf-8"], corpus, Position(0, 3))
    assert isinstance(chunk, RowChunk) and chunk.values == tuple(TRICKY[3:]) and chunk.ends_file


def test_a_json_array_is_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    texts = [f"글 {number} " + "가" * (number % 50) for number in range(300)]
    for content in (
        json.dumps([{"text": text} for text in texts]),
        "\n".join(json.dumps({"text": text}) for text in texts),
    ):
        file.write_text("\ufeff " + content + "\n ")
        for size in (1, 7, 64, 100_000):
            monkeypatch.setattr(json_text, "READ_CHARACTERS", size)
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
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1\n", r"a\.csv:1: 1 fields under a header of 2 \(line 2\)"),
        ('id,text\n1,"가"나\n', r"a\.csv:1: broken CSV"),
        ('id,text\n1,"끝나지 않는\n', r"a\.csv:1: broken CSV"),
        ("id,글\n1,가\n", r"a\.csv:1: no column 'text' \('id', '글'\); set corpus\.text_field"),
    ],
)
def test_broken_csv_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "a.csv")


def test_behind_broken_json_nothing_is_guessed_and_what_is_lost_is_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elements = [json.dumps({"text": f"글 {number:04d}", "tags": [{"text": "꼬리표"}]}) for number in range(1000)]
    elements[100] = '{"text": "그는 "예" 라고 했다", "tags": [{"text": "꼬리표"}]}'
    file = tmp_path / "a.json"
    file.write_text("[" + ",\n".join(elements) + "]")
    assert read(file, **SKIP) == [f"글 {number:04d}" for number in range(100)]
    counted = re.search(r"(\d+) of (\d+) records were skipped: 1 json, (\d+) unreachable", caplog.text)
    assert counted is not None
    broken, records, unreachable = map(int, counted.groups())
    assert unreachable == pytest.approx(899, rel=0.05)
    assert (broken, records) == (unreachable + 1, unreachable + 101)
    said = rf"a\.json:101: broken JSON .*; what lies behind it, about {unreachable} records, is left out"
    assert re.search(said, caplog.text)
    # One broken record in 101 may be skipped; nine tenths of the corpus may not.
    with pytest.raises(BadInput, match=rf"{broken} of {records} records are broken .*, more than corpus\.largest_"):
        read(file, on_error="skip", largest_skipped_share=0.1)


def test_a_broken_csv_row_costs_the_lines_that_it_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        '1,"가"나',
        "2,나",
        '3,"열린 따옴표',
        "4,다",
        '5,"라"',
        f"6,{'길' * 5000}",
        "7,마\0바",
        '8,"끝나지 않는',
        "9,사",
    ]
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows) + "\n")
    assert read(tmp_path / "a.csv", longest_document=1024, **SKIP) == ["나", "마\0바"]
    # Rows 4 and 5 lie in the quotes that row 3 opens, row 9 in those of row 8.
    assert "7 of 9 records were skipped: 3 csv, 1 too_long, 3 unreachable" in caplog.text


@pytest.mark.parametrize("row", ['"a\n",' * 4000 + "끝\n", '"' + "긴 줄\n" * 2000 + '"\n'])
def test_a_csv_row_of_however_many_lines_is_never_whole_in_memory(
    tmp_path: Path, row: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text\n가\n" + row + "나\n")
    with pytest.raises(BadInput, match=r"a\.csv:2: a row of more than 4096 characters; mend its quotes, or"):
        read(file, longest_document=1024)
    assert read(file, longest_document=1024, **SKIP)[0] == "가"
    counted = re.search(r"(\d+) of (\d+) records were skipped: .*too_long, (\d+) unreachable", caplog.text)
    assert counted is not None and int(counted[3]) >= 500


def test_the_memory_of_a_csv_row_is_bounded_and_not_the_number_of_rows(tmp_path: Path) -> None:
    rows = [f'"글 {number}\n{"둘째 줄" * 60}"' for number in range(100)]
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(rows))
    assert read(tmp_path / "a.csv", longest_document=1024) == [row.strip('"') for row in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_ends_a_csv_row(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.csv").write_bytes(end.join(["id,text", "1,가", '2,"나\n다"', "3,라", ""]).encode("utf-8-sig"))
    assert read(tmp_path / "a.csv") == ["가", "나\n다", "라"]


def test_bytes_of_another_encoding_cost_the_one_record_that_holds_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = "완성형".encode("cp949")
    (tmp_path / "a.json").write_bytes('[{"text": "가"}, {"text": "'.encode() + bad + '"}, {"text": "나"}]'.encode())
    (tmp_path / "a.csv").write_bytes("text\n가\n".encode() + bad + "\n나\n".encode())
    for name in ("a.json", "a.csv"):
        with pytest.raises(BadInput, match=rf"{name}:2: not UTF-8 \("):
            read(tmp_path / name)
        caplog.clear()
        assert read(tmp_path / name, **SKIP) == ["가", "나"]
        assert "1 of 3 records were skipped: 1 encoding" in caplog.text


def test_damage_behind_which_nothing_is_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for suffix in (".txt.gz", ".json.gz"):
        file = tmp_path / f"half{suffix}"
        plain = json.dumps([{"text": "글"}] * 9).encode() if "json" in suffix else "글\n".encode() * 9
        file.write_bytes(gzip.compress(plain)[:-9])
        caplog.clear()
        read(file, **SKIP)
        assert re.search(rf"half{suffix}: damaged gz .*; what lies behind it is left out", caplog.text)


def test_csv_in_cp949(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,text\n1,똠방각하\n".encode("cp949"))
    assert read(tmp_path / "a.csv", encoding="cp949") == ["똠방각하"]
    assert read(tmp_path / "a.csv", encoding="auto") == ["똠방각하"]
    with pytest.raises(BadInput, match=r"a\.csv:1: not UTF-8 \(line 2\)"):
        read(tmp_path / "a.csv")


def test_dots_reach_into_nested_fields(tmp_path: Path) -> None:
    records = [{"document": {"body": "안쪽"}}, {"document": {"body": "둘째"}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "a.json").write_text(json.dumps(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert read(tmp_path / name, text_field="document.body") == ["안쪽", "둘째"]


def test_null_in_a_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["가", None, "나"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet:2: field 'text' holds null"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", **SKIP) == ["가", "나"]


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"not a table at all")
        with pytest.raises(BadInput, match=rf"{name}: no \w+ file, or a damaged one"):
            read(tmp_path / name)


READ_ROWS = """
import sys
from configs.schema import CorpusSettings
from data_prep.corpus import corpus_files, read_documents
corpus = CorpusSettings(input=(sys.argv[1],), on_error="skip", largest_skipped_share=1.0)
print(*(document.text for document in read_documents(corpus_files(corpus), corpus)))
"""


@pytest.mark.parametrize("offset", [2**30, -(2**30)])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_damaged_offset_in_an_arrow_file_is_a_fault(tmp_path: Path, offset: int, kind: str) -> None:
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
def test_a_column_that_is_no_utf_8_is_a_fault(tmp_path: Path, suffix: str) -> None:
    content = write(tmp_path, suffix, ["ASCII"] * 3).read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(content.replace(b"ASCII", b"AS\xffII"))
    with pytest.raises(BadInput, match=rf"b{suffix}: no \w+ file, or a damaged one \(Invalid UTF8"):
        read(tmp_path / f"b{suffix}")


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    one = datasets.Dataset.from_dict({"text": TRICKY})
    one.save_to_disk(tmp_path / "one", num_shards=2)
    assert read(tmp_path / "one") == TRICKY
    datasets.DatasetDict(train=one).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "dict") == TRICKY
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "two")
    with pytest.raises(BadInput, match=r"saved with several splits \(test, train\)"):
        read(tmp_path / "two")
    assert read(tmp_path / "two" / "test") == TRICKY


def test_a_file_that_is_not_compressed_is_not_told_to_be_compressed_again(tmp_path: Path) -> None:
    table = pa.table({"text": ["영화가 재미있다 " * 50] * 400})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    file = tmp_path / "cut.arrow"
    content = sink.getvalue().to_pybytes()
    file.write_bytes(content[: len(content) // 2])
    done = malmoi("tokenizer", "--input", str(file), "--vocab_size", "300", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "cut.arrow: damaged arrow (" in done.stderr and "fetch or write the file again" in done.stderr
