"""Where a file is cut into chunks changes no document, and no chunk outgrows what a document may take."""

import bz2
import gzip
import io
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malmoi.configs.corpus import CorpusSettings, Encoding
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.readers import chunks
from malmoi.data_prep.readers.chunks import ByteChunk, Position, chunks_of
from malmoi.data_prep.readers.source_file import open_bytes
from malmoi.data_prep.readers.sources import corpus_files

Unit = Literal["line", "paragraph", "file"]
COMPRESS = {"": lambda b: b, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}
PIECES = st.lists(
    st.sampled_from(["가", "나다", "a", " ", "\t", "\n", "\n\n", "\r", "\r\n", "\u3000", "\u2028", "\ufeff", "\0"])
)


def expected_documents(text: str, unit: Unit) -> list[str]:
    """The documents of a .txt file, by Python's own universal line ends."""
    text = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8-sig", newline=None).read()
    if unit == "line":
        parts = text.split("\n")
    elif unit == "paragraph":
        parts = re.split(r"\n(?:[^\S\n]*\n)+", "\n" + text + "\n\n")
        parts = [re.sub(r"\A(?:[^\S\n]*\n)+|\n\Z", "", part) for part in parts]
    else:
        parts = [text[:-1] if text.endswith("\n") else text]
    return [part for part in parts if part.strip()]


@given(
    data=st.data(),
    pieces=PIECES,
    unit=st.sampled_from(["line", "paragraph", "file"]),
    suffix=st.sampled_from(sorted(COMPRESS)),
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_change_no_document(
    data: st.DataObject, pieces: list[str], unit: Unit, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(pieces)
    file = tmp_path_factory.getbasetemp() / f"chunked.txt{suffix}"
    file.write_bytes(COMPRESS[suffix](text.encode()))
    corpus = CorpusSettings(input=(str(file),), document=unit, normalize="none")
    size = data.draw(st.integers(1, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", size)
        files = corpus_files(corpus)
        found = [document.text for document in read_documents(files, corpus)]
        cuts = [chunk for chunk in chunks_of(files, corpus, Position()) if isinstance(chunk, ByteChunk)]
        # Reading can continue behind any chunk.
        if cuts:
            behind = data.draw(st.integers(0, len(cuts) - 1))
            place = Position(0, cuts[behind].end, 0, cuts[behind].ends_inside)
            assert list(chunks_of(files, corpus, place)) == cuts[behind + 1 :]
    assert found == expected_documents(text, unit)
    assert [chunk.start for chunk in cuts] == [0, *(chunk.end for chunk in cuts[:-1])][: len(cuts)]
    assert (cuts[-1].end if cuts else 0) == len(text.encode())


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_document_above_the_limit_is_cut_between_characters(tmp_path: Path, encoding: str, suffix: str) -> None:
    line = "가나a" * 4_000_000
    file = tmp_path / f"long.txt{suffix}"
    file.write_bytes(COMPRESS[suffix](f"앞\n{line}\n뒤\n".encode(encoding)))
    corpus = CorpusSettings(input=(str(file),), encoding=encoding, max_document_bytes=5_000_000)  # type: ignore[arg-type]
    found = [document.text for document in read_documents(corpus_files(corpus), corpus)]
    assert found[0] == "앞" and found[-1] == "뒤"
    assert "".join(found[1:-1]) == line
    assert len(found) > 4 and max(len(text.encode()) for text in found) <= 5_000_000


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("blank", ["\n \n", "\n\u3000\t\n", "\r\n \r\n", "\r \r", "\n\r가\n\n", "\n\n"])
def test_paragraphs_parted_by_lines_of_white_space_are_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: Encoding, suffix: str, blank: str
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    texts = [f"문단 {number}" for number in range(2000)]
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(COMPRESS[suffix](blank.join(texts).encode(encoding)))
    corpus = CorpusSettings(input=(str(file),), document="paragraph", encoding=encoding, max_document_bytes=4000)
    files = corpus_files(corpus)
    found = [document.text for document in read_documents(files, corpus)]
    assert [text for text in found if text != "가"] == texts
    cuts = [chunk for chunk in chunks_of(files, corpus, Position()) if isinstance(chunk, ByteChunk)]
    assert len(cuts) > 5 and not any(chunk.ends_inside for chunk in cuts)
    assert max(chunk.end - chunk.start for chunk in cuts) <= 2000


def test_boundaries_are_found_in_time_that_grows_with_the_file_alone(tmp_path: Path) -> None:
    """White space without a boundary, and lines without a blank one, each as long as a chunk may become."""
    for name, content in (("space", "글\n" + " \u3000" * 3_000_000), ("lines", "글\n" * 3_000_000)):
        file = tmp_path / f"{name}.txt"
        file.write_text(content + "글\n\n끝", encoding="utf-8")
        corpus = CorpusSettings(input=(str(file),), document="paragraph")
        done = list(chunks_of(corpus_files(corpus), corpus, Position()))
        assert [chunk.end for chunk in done][-1] == file.stat().st_size and len(done) <= 3


def test_a_json_record_above_the_limit_is_broken_input_and_the_next_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "long.jsonl"
    records = [{"text": "앞"}, {"text": "길" * 3_000_000}, {"text": "뒤"}]
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    corpus = CorpusSettings(input=(str(file),), max_document_bytes=1_100_000, on_error="skip", max_error_rate=1)
    assert [document.text for document in read_documents(corpus_files(corpus), corpus)] == ["앞", "뒤"]
    assert "1 of 3 records were skipped: 1 too_long" in caplog.text


LONG_LINE = """
import sys
from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.readers.sources import corpus_files
corpus = CorpusSettings(input=(sys.argv[1],), max_document_bytes=8_000_000)
print(sum(len(d.text) for d in read_documents(corpus_files(corpus), corpus)))
# Unlike ru_maxrss, this does not count the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    ("suffix", "size"),
    [(".zst", 500_000_000), pytest.param(".zst", 10**9, marks=SOAK), pytest.param("", 10**9, marks=SOAK)],
)
def test_a_single_line_of_a_file_is_never_completely_in_memory(tmp_path: Path, suffix: str, size: int) -> None:
    file, block = tmp_path / f"one_line.txt{suffix}", ("한 줄이 끝없이 이어진다 " * 30_000).encode()
    with zstd.open(file, "wb") if suffix else file.open("wb") as stream:
        for _ in range(size // len(block)):
            stream.write(block)
    done = subprocess.run([sys.executable, "-c", LONG_LINE, str(file)], capture_output=True, text=True, check=True)
    characters, kilobytes = map(int, done.stdout.split())
    assert characters == size // len(block) * len(block.decode())
    assert kilobytes < 400_000
    file.unlink()


def test_damage_leaves_no_half_document(tmp_path: Path) -> None:
    content = "".join(f"문장 {number}\n" for number in range(10_000)).encode()
    expected = content.decode().splitlines()
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        file = tmp_path / f"half.txt{suffix}"
        packed = COMPRESS[suffix](content)
        file.write_bytes(packed[: len(packed) // 2])
        corpus = CorpusSettings(input=(str(file),), on_error="skip", max_error_rate=1)
        found = [document.text for document in read_documents(corpus_files(corpus), corpus)]
        assert found == expected[: len(found)], suffix


def test_several_members_are_one_file(tmp_path: Path) -> None:
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        file = tmp_path / f"two.txt{suffix}"
        file.write_bytes(COMPRESS[suffix]("하나\n".encode()) + COMPRESS[suffix]("둘\n".encode()))
        with open_bytes(corpus_files(CorpusSettings(input=(str(file),)))[0]) as stream:
            assert stream.read().decode() == "하나\n둘\n", suffix
