"""Every reader of the registry gives the texts that were written, whatever they hold, from wherever it resumes."""

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.readers import READERS, ReaderSpec, chunks
from malmoi.data_prep.readers.chunks import ByteChunk, Chunk, Position, chunks_of
from malmoi.data_prep.readers.source_file import SourceFile, open_text
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.errors import UserError
from tests.data_prep.reading import SKIP, TRICKY, read, write

TEXTS = st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, max_size=8)


def fitting(texts: list[str], suffix: str) -> list[str]:
    """`texts` without what the format cannot hold."""
    if suffix in (".csv", ".tsv"):  # a NUL is refused by csv.writer
        texts = [text.replace("\0", "") for text in texts]
    elif suffix == ".txt":
        texts = [re.sub("[\n\r\ufeff]", "", text) for text in texts]
    return [text if text.strip() else "글" for text in texts]


@given(texts=TEXTS, suffix=st.sampled_from(sorted(READERS)))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read(texts: list[str], suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    texts = fitting(texts, suffix)
    assert read(write(tmp_path_factory.getbasetemp(), suffix, texts)) == texts


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    texts = fitting(TRICKY, suffix)
    plain = write(tmp_path, suffix, texts)
    packed = tmp_path / f"packed{suffix}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(packed) == read(plain) == texts


def behind(chunk: Chunk) -> Position:
    if isinstance(chunk, ByteChunk):
        return Position(0, chunk.end, 0, chunk.ends_inside)
    return Position(1) if chunk.ends_file else Position(0, chunk.end)


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_reading_resumes_behind_any_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 60)
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 10)
    corpus = CorpusSettings(input=(str(write(tmp_path, suffix, fitting(TRICKY * 3, suffix))),))
    files = corpus_files(corpus)
    found = list(chunks_of(files, corpus, Position()))
    assert len(found) > 3
    for number, chunk in enumerate(found):
        assert list(chunks_of(files, corpus, behind(chunk))) == found[number + 1 :]


def test_a_reader_takes_a_file_or_lines_and_not_both() -> None:
    for spec in ({}, {"records": lambda file, settings: iter(()), "lines": READERS[".txt"].lines}):
        with pytest.raises(ValueError, match="either `records` or `lines`"):
            ReaderSpec(**spec)  # type: ignore[arg-type]  # which is the point


def test_a_registered_suffix_is_read_and_the_error_for_an_unknown_one_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.md").write_text("하나\n둘\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.md: no reader for this format; use \.txt, .* or \.arrow, plain or \.gz"):
        read(tmp_path / "a.md")
    monkeypatch.setitem(READERS, ".md", READERS[".txt"])
    assert read(tmp_path / "a.md") == read(tmp_path) == ["하나", "둘"]
    with pytest.raises(UserError, match=r"a\.rst: no reader for this format; use \.txt, .* or \.md, plain or \.gz"):
        (tmp_path / "a.rst").touch()
        read(tmp_path / "a.rst")


def test_a_record_that_is_no_text_costs_itself_and_one_that_cannot_be_decoded_the_rest_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_words(file: SourceFile, settings: object) -> object:
        with open_text(file) as stream:
            for line in stream:
                yield from json.loads(line)

    monkeypatch.setitem(READERS, ".words", ReaderSpec(read_words))  # type: ignore[arg-type]
    (tmp_path / "a.words").write_text('["하나", "\\ud800", "둘"]\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.words:2: half of a surrogate pair at character 0"):
        read(tmp_path / "a.words")
    assert read(tmp_path / "a.words", **SKIP) == ["하나", "둘"]
    (tmp_path / "a.words").write_bytes('["하나"]\n'.encode() + b"\xff\n" * 100_000)
    with pytest.raises(UserError, match=r"a\.words:1: not UTF-8 \("):
        read(tmp_path / "a.words")
    caplog.clear()
    read(tmp_path / "a.words", **SKIP)
    assert "the rest of the file is left out" in caplog.text


def test_bytes_of_another_encoding_cost_the_one_record_that_holds_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = "완성형".encode("cp949")
    (tmp_path / "a.json").write_bytes('[{"text": "가"}, {"text": "'.encode() + bad + '"}, {"text": "나"}]'.encode())
    (tmp_path / "a.csv").write_bytes("text\n가\n".encode() + bad + "\n나\n".encode())
    for name in ("a.json", "a.csv"):
        with pytest.raises(UserError, match=rf"{name}:2: not UTF-8 \("):
            read(tmp_path / name)
        caplog.clear()
        assert read(tmp_path / name, **SKIP) == ["가", "나"]
        assert "1 of 3 records were skipped: 1 encoding" in caplog.text


def test_damage_behind_which_nothing_is_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for suffix in (".txt.gz", ".json.gz"):
        file = tmp_path / f"half{suffix}"
        plain = json.dumps([{"text": "글"}] * 9).encode() if "json" in suffix else "글\n".encode() * 9
        file.write_bytes(gzip.compress(plain)[:-9])
        caplog.clear()
        read(file, **SKIP)
        assert re.search(rf"half{suffix}: damaged gz .*; the rest of the file is left out", caplog.text)


def test_dots_reach_into_nested_fields(tmp_path: Path) -> None:
    records = [{"document": {"body": "안쪽"}}, {"document": {"body": "둘째"}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert read(tmp_path / name, text_field="document.body") == ["안쪽", "둘째"]
