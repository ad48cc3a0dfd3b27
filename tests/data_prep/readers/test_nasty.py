"""Every hostile file has one expected outcome: these documents, or this message."""

import gzip
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.data_prep.shards.indexed_dataset import open_shard
from malmoi.data_prep.shards.manifest import read_manifest
from malmoi.errors import UserError

SKIP = CorpusSettings(on_error="skip", max_error_rate=1.0)


def texts(file: Path, settings: CorpusSettings | None = None) -> list[str]:
    corpus = replace(settings or CorpusSettings(), input=(str(file),))
    return [document.text for document in read_documents(corpus_files(corpus), corpus)]


def skipped(file: Path, tokenizer_folder: Path, out: Path, settings: CorpusSettings = SKIP) -> dict[str, int]:
    folder = prepare_shards(replace(settings, input=(str(file),)), DataSettings(workers=1), tokenizer_folder, out)
    return dict(read_manifest(folder).skipped)


@pytest.mark.parametrize("encoding", ["cp949", "auto"])
def test_cp949_with_syllables_outside_ks_x_1001(nasty: Path, encoding: str) -> None:
    expected = texts(nasty / "enc_cp949-utf8_cpython.txt")
    assert expected[0] == "똠방각하 펲시콜라"
    assert texts(nasty / "enc_cp949_cpython.txt", CorpusSettings(encoding=encoding)) == expected  # type: ignore[arg-type]


def test_cp949_taken_for_utf8_stops_at_its_line_and_byte(nasty: Path) -> None:
    with pytest.raises(
        UserError, match=r"enc_cp949_cpython\.txt:1: not UTF-8 at byte 0; it looks like CP949: set corp"
    ):
        texts(nasty / "enc_cp949_cpython.txt")


def test_every_hostile_file_has_its_expected_result(nasty: Path) -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [file.name for file in nasty.iterdir() if file.name not in tests and file.name != "README.md"] == []


def test_nfd_becomes_nfc(nasty: Path) -> None:
    raw = (nasty / "uni_nfd.txt").read_text(encoding="utf-8")
    assert not unicodedata.is_normalized("NFC", raw)
    assert texts(nasty / "uni_nfd.txt") == texts(nasty / "uni_nfd.expected.txt")
    assert "\n".join(texts(nasty / "uni_nfd.txt", CorpusSettings(normalize="none"))).strip() == raw.strip()


def test_nul_bytes_are_text(nasty: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    assert texts(nasty / "ctl_nul.txt") == ["영화\0가 \0\0재미있다", "다음 줄\0"]
    corpus = CorpusSettings(input=(str(nasty / "ctl_nul.txt"),))
    folder = prepare_shards(corpus, DataSettings(workers=1, val_fraction=0), tokenizer_folder, tmp_path)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert tokenizer.decode(open_shard(folder / "train-00000").document(1).tolist()) == "다음 줄\0"


def test_special_tokens_spelled_out_stay_text(nasty: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    corpus = CorpusSettings(input=(str(nasty / "ctl_special_tokens.txt"),))
    folder = prepare_shards(corpus, DataSettings(workers=1, val_fraction=0), tokenizer_folder, tmp_path)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    ids = open_shard(folder / "train-00000").document(0)
    special = [tokenizer.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    assert ids[0] == special[0] and ids[-1] == special[2]
    assert not np.isin(ids[1:-1], special).any()
    assert tokenizer.decode(ids.tolist()) == (nasty / "ctl_special_tokens.txt").read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize("name", ["empty.txt", "only_bom.txt"])
def test_nothing_is_no_document(nasty: Path, name: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    assert texts(nasty / name) == []
    with pytest.raises(UserError, match=rf"{name}: no document, all is empty or blank"):
        skipped(nasty / name, tokenizer_folder, tmp_path)


def test_one_syllable_is_a_document(nasty: Path) -> None:
    assert texts(nasty / "one_char.txt") == ["아"]


def test_truncated_gzip(nasty: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    file = nasty / "gz_truncated.jsonl.gz"
    with pytest.raises(UserError, match=r"gz_truncated\.jsonl\.gz: damaged gz \(Compressed file ended"):
        texts(file)
    whole_lines = 0
    with gzip.open(file) as stream, pytest.raises(EOFError):
        for _ in stream:
            whole_lines += 1
    # Buffering hides the last lines from gzip's own iteration.
    assert len(texts(file, SKIP)) >= whole_lines > 0
    assert skipped(file, tokenizer_folder, tmp_path) == {"compression": 1}


def test_gzip_with_a_wrong_checksum(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.txt.gz"
    content = bytearray(gzip.compress("첫째 줄\n둘째 줄\n".encode()))
    content[-8] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"wrong\.txt\.gz: damaged gz \(CRC check failed"):
        texts(file)
    assert texts(file, SKIP) == ["첫째 줄", "둘째 줄"]
    assert skipped(file, tokenizer_folder, tmp_path / "out") == {"compression": 1}


def test_lone_surrogates(nasty: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    file = nasty / "json_lone_surrogates.jsonl"
    with pytest.raises(UserError, match=r"json_lone_surrogates\.jsonl:1: half of a surrogate pair at character 0"):
        texts(file)
    assert texts(file, SKIP) == ["😀 정상"]
    assert skipped(file, tokenizer_folder, tmp_path) == {"surrogate": 3}


def test_malformed_json(nasty: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    file = nasty / "json_malformed.jsonl"
    with pytest.raises(UserError, match=r"json_malformed\.jsonl:2: broken JSON"):
        texts(file)
    assert texts(file, SKIP) == ["정상 1", "키", "깊이", "큰 수", "\0널", "정상 2"]
    # Lines 2-7 and 21; 9-12 and 18; 13-15 and 20. Line 8 is blank, 16 and 17 hold blank text.
    assert skipped(file, tokenizer_folder, tmp_path) == {"json": 7, "field": 5, "type": 4}


def test_skipping_fails_above_the_share(nasty: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"16 of 22 records are broken \(.*\), more than corpus.max_error_rate"):
        skipped(nasty / "json_malformed.jsonl", tokenizer_folder, tmp_path, CorpusSettings(on_error="skip"))


def test_skipped_records_are_not_accepted_by_a_later_stop(nasty: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    skipped(nasty / "json_lone_surrogates.jsonl", tokenizer_folder, tmp_path)
    with pytest.raises(UserError, match="3 broken records were skipped"):
        skipped(nasty / "json_lone_surrogates.jsonl", tokenizer_folder, tmp_path, CorpusSettings())


def test_carriage_returns_alone_end_lines(tmp_path: Path) -> None:
    (tmp_path / "mac.txt").write_bytes("첫째\r둘째\r\n셋째\n넷째".encode())
    assert texts(tmp_path / "mac.txt") == ["첫째", "둘째", "셋째", "넷째"]
    (tmp_path / "mac.jsonl").write_bytes('{"text": "가"}\r{"text": "나"}\r'.encode())
    assert texts(tmp_path / "mac.jsonl") == ["가", "나"]


def test_only_line_ends_end_lines(tmp_path: Path) -> None:
    text = "가\u2028나\u0085다\x0b라\x0c마\x1c바"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert texts(tmp_path / "a.txt") == [text]


def test_mixed_encodings(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = tmp_path / "mixed.txt"
    file.write_bytes("유니코드\n".encode() + "완성형 글\n".encode("cp949") + "다시 유니코드\n".encode())
    with pytest.raises(UserError, match=r"mixed\.txt:2: not UTF-8 at byte 13"):
        texts(file)
    with pytest.raises(UserError, match=r"mixed\.txt: neither UTF-8 nor CP949 from beginning to end"):
        texts(file, CorpusSettings(encoding="auto"))
    assert texts(file, SKIP) == ["유니코드", "다시 유니코드"]
    assert skipped(file, tokenizer_folder, tmp_path / "out") == {"encoding": 1}


def test_utf16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("한글 문장".encode("utf-16"))
    with pytest.raises(UserError, match=r"a\.txt:1: not UTF-8 at byte 0; it looks like UTF-16"):
        texts(tmp_path / "a.txt")


def test_surrogates_encoded_in_utf8_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok\n\xed\xa0\xbd\xed\xb8\x80\n")
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8 at byte 3"):
        texts(tmp_path / "a.txt")


def test_one_line_of_50_mb_is_one_document(tmp_path: Path) -> None:
    line = "긴 줄이 이어진다 " * 2_100_000
    (tmp_path / "long.txt").write_text(f"앞\n{line}\n뒤\n", encoding="utf-8")
    assert len(line.encode()) > 50_000_000
    assert texts(tmp_path / "long.txt") == ["앞", line, "뒤"]
    assert texts(tmp_path / "long.txt", CorpusSettings(document="file")) == [f"앞\n{line}\n뒤"]
