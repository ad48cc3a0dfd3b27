"""Each filter is off unless set, removes what it says, and counts it."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.configs.corpus import CleaningSettings, CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.filters.cleaning import Cleaner, hangul_ratio
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.shards.indexed_dataset import open_shard
from malmoi.data_prep.shards.manifest import Manifest, read_manifest
from malmoi.data_prep.tokenizer.train import load_tokenizer
from malmoi.errors import UserError
from tests.data_prep.building import Build, content_of, wait_until


def cleaner(**wanted: object) -> Cleaner:
    return Cleaner(CorpusSettings(cleaning=CleaningSettings(**wanted)))  # type: ignore[arg-type]


@given(st.text().filter(str.strip))
def test_nothing_is_removed_unless_set(text: str) -> None:
    quiet = Cleaner(CorpusSettings(normalize="none"))
    assert quiet.clean(text) == text and not quiet.counts


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("문의는 hong.gil-dong+news@mail.example.co.kr로 주세요", "문의는 로 주세요"),
        ("a@b.kr, c@d.com", ", "),
        ("골뱅이 @ 하나, @handle, 3@4, a@b", "골뱅이 @ 하나, @handle, 3@4, a@b"),
    ],
)
def test_emails(text: str, left: str) -> None:
    found = cleaner(remove_emails=True)
    assert found.clean(text) == left
    assert found.counts["email"] == text.count("@") - left.count("@")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("번호 900101-1234567 입니다", "번호  입니다"),
        ("9001011234567", None),
        ("900101 - 4234567!", "!"),
        (
            "900101-12345678, 901301-1234567, 900132-1234567, 010-1234-5678",
            "900101-12345678, 901301-1234567, 900132-1234567, 010-1234-5678",
        ),
    ],
)
def test_resident_numbers(text: str, left: str | None) -> None:
    found = cleaner(remove_resident_numbers=True)
    assert found.clean(text) == left
    assert found.counts["resident_number"] == (text != left)
    assert found.counts["emptied"] == (left is None)


def test_repeated_lines() -> None:
    found = cleaner(dedup_lines=True)
    assert found.clean("가\n나\n\n가\n다\n\n나") == "가\n나\n\n다\n"
    assert found.counts["repeated_line"] == 2


def test_lengths_are_in_characters() -> None:
    found = cleaner(min_chars=3, max_chars=5)
    assert [found.clean(text) for text in ("가나", "가나다", "가나다라마", "가나다라마바")] == [
        None,
        "가나다",
        "가나다라마",
        None,
    ]
    assert found.counts == {"too_short": 1, "too_long": 1}


def test_hangul_ratio() -> None:
    assert hangul_ratio("한글 abc\n") == 2 / 5
    assert hangul_ratio("ㅋㅋ 하") == 1.0
    found = cleaner(min_hangul_ratio=0.4)
    assert found.clean("한글 abc") is not None and found.clean("한 abcd") is None
    assert found.counts["little_hangul"] == 1


def prepared(tmp_path: Path, tokenizer: Path, lines: list[str], **wanted: object) -> tuple[Manifest, list[str]]:
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),), cleaning=CleaningSettings(**wanted))  # type: ignore[arg-type]
    folder = prepare_shards(corpus, DataSettings(val_fraction=0), tokenizer, tmp_path / "out")
    shard, words = open_shard(folder / "train-00000"), load_tokenizer(tokenizer)
    return read_manifest(folder), [words.decode(shard.document(n).tolist()) for n in range(len(shard.lengths))]


def test_exact_duplicates(tokenizer_folder: Path, tmp_path: Path) -> None:
    lines = ["하나", "둘", "하나", "셋", "둘", "하나"]
    manifest, texts = prepared(tmp_path, tokenizer_folder, lines, exact_dedup=True)
    assert texts == ["하나", "둘", "셋"]
    assert manifest.cleaned == {"exact_duplicate": 3}
    assert manifest.train.counts.documents == 3
    assert manifest.train.counts.bytes == len("하나둘셋".encode())
    assert manifest.train.counts.characters == 4


def test_near_duplicates(tokenizer_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasketch", reason="datasketch is not installed")
    base = " ".join(f"낱말{number}" for number in range(200))
    lines = [
        base,
        "전혀 다른 짧은 글",
        f"{base} 끝",
        "또 다른 글 하나 더 있다",
        " ".join(f"다른{n}" for n in range(200)),
    ]
    manifest, texts = prepared(tmp_path, tokenizer_folder, lines, near_dedup_threshold=0.8)
    assert texts == [lines[0], lines[1], lines[3], lines[4]]
    assert manifest.cleaned == {"near_duplicate": 1}


def test_a_killed_build_remembers_what_it_kept(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Duplicates of documents from before the kill are still found after it."""
    lines = [f"글 {number % 30_000} 그리고 그 다음 이야기" for number in range(60_000)]
    (tmp_path / "b.txt").write_text("\n".join(lines), encoding="utf-8")
    cleaning = {"cleaning": {"exact_dedup": True}}
    wanted = {"corpus": cleaning, "workers": 1, "shard_tokens": 50_000}
    build = Build(tokenizer_folder, tmp_path / "out", tmp_path / "b.txt", **wanted)  # type: ignore[arg-type]
    wait_until(lambda: bool(list((tmp_path / "out").glob(".*.building-*/train-00002.bin"))))
    build.kill()
    folder = Build(tokenizer_folder, tmp_path / "out", tmp_path / "b.txt", **wanted).folder()  # type: ignore[arg-type]
    manifest = read_manifest(folder)
    assert manifest.cleaned == {"exact_duplicate": 30_000}
    alone = Build(tokenizer_folder, tmp_path / "alone", tmp_path / "b.txt", **wanted).folder()  # type: ignore[arg-type]
    assert content_of(folder) == content_of(alone)


def test_where_cleaning_leaves_no_document_its_reasons_are_reported(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt: cleaning left no document \(1 little_hangul, 2 too_short\); change"):
        prepared(tmp_path, tokenizer_folder, ["하나", "abcdefghijkl", "둘"], min_chars=10, min_hangul_ratio=0.5)


def test_where_all_is_broken_it_is_not_cleaning_that_left_no_document(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n[\n", encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.jsonl"),), on_error="skip", max_error_rate=1)
    with pytest.raises(UserError, match=r"a\.jsonl: no document but broken records \(1 field, 1 json\); fix them"):
        prepare_shards(corpus, DataSettings(), tokenizer_folder, tmp_path / "out")


def test_settings_are_off_by_default() -> None:
    assert replace(CleaningSettings()) == CleaningSettings(
        min_chars=0, max_chars=0, exact_dedup=False, near_dedup_threshold=0.0, min_hangul_ratio=0.0,
        dedup_lines=False, remove_emails=False, remove_resident_numbers=False,
    )  # fmt: skip
