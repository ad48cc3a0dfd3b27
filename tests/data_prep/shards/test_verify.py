"""A cut file, one flipped bit, a missing shard, another tokenizer: each is found and named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from malmoi.configs.corpus import CorpusSettings, TokenizerSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline.build import build_tokenizer, prepare_shards
from malmoi.data_prep.shards.manifest import read_manifest, write_manifest
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.data_prep.shards.verify import shard_errors, verify_shards
from malmoi.errors import UserError
from tests.data_prep.building import content_of


@pytest.fixture
def shards(reviews: Path, tokenizer_folder: Path, tmp_path: Path) -> Path:
    with reviews.open(encoding="utf-8") as stream:
        (tmp_path / "a.jsonl").write_text("".join(line for line, _ in zip(stream, range(2000), strict=False)))
    return prepare(tmp_path, tokenizer_folder)


def prepare(folder: Path, tokenizer: Path) -> Path:
    corpus = CorpusSettings(input=(str(folder / "a.jsonl"),))
    return prepare_shards(corpus, DataSettings(val_fraction=0.1), tokenizer, folder / "out")


def kinds(folder: Path, checksums: bool = True, tokenizer: Path | None = None) -> list[tuple[str, str]]:
    return [(finding.kind, finding.file.name) for finding in verify_shards(folder, checksums, tokenizer)]


def flip(file: Path, byte: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def test_a_valid_folder_has_no_finding(shards: Path, tokenizer_folder: Path) -> None:
    assert kinds(shards, tokenizer=tokenizer_folder) == []
    assert shard_errors(shards.parent) == []


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.idx", "val-00000.bin", "val-00000.idx"])
def test_any_flipped_bit_any_cut_and_any_missing_file(shards: Path, name: str) -> None:
    file = shards / name
    size = file.stat().st_size
    for byte in (0, size // 2, size - 1):
        flip(file, byte)
        found = kinds(shards)
        assert ("checksum", name) in found, byte
        with pytest.raises(UserError, match=f"{name}: its content changed"):
            open_split(shards, "train", checksums=True)
        flip(file, byte)
    assert kinds(shards) == []
    with file.open("ab") as stream:
        stream.truncate(size - 1)
    assert kinds(shards, checksums=False) == [("size", name)]
    with pytest.raises(UserError, match=f"{name}: {size - 1} bytes, recorded with {size}"):
        open_split(shards, "train")
    file.unlink()
    assert kinds(shards, checksums=False) == [("missing", name)]
    with pytest.raises(UserError, match=f"{name}: missing"):
        open_split(shards, "train")


def test_another_tokenizer_is_found(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("전혀 다른 글\n" * 50, encoding="utf-8")
    other = build_tokenizer(
        CorpusSettings(input=(str(tmp_path / "other.txt"),)),
        TokenizerSettings(vocab_size=300),
        tmp_path / "other",
        False,
    )
    assert kinds(shards, tokenizer=other) == [("tokenizer", "manifest.json")]


def test_a_manifest_with_other_counts_is_found(shards: Path) -> None:
    from dataclasses import replace

    manifest = read_manifest(shards)
    wrong = replace(manifest.train, counts=replace(manifest.train.counts, tokens=manifest.train.counts.tokens + 1))
    write_manifest(replace(manifest, train=wrong), shards)
    assert kinds(shards) == [("counts", "manifest.json")]


def test_any_flipped_bit_of_the_manifest_is_found(shards: Path) -> None:
    content = (shards / "manifest.json").read_bytes()
    for bit in range(0, 8 * len(content), 5):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (shards / "manifest.json").write_bytes(changed)
        assert kinds(shards, checksums=False) == [("manifest", "manifest.json")], bit
        with pytest.raises(UserError, match=r"manifest\.json: "):
            open_split(shards, "train")


def test_a_file_that_nobody_wrote_is_found(shards: Path) -> None:
    shutil.copy(shards / "train-00000.bin", shards / "train-00001.bin")
    assert kinds(shards) == [("unknown", "train-00001.bin")]


def test_no_manifest_and_half_a_manifest_are_found(shards: Path) -> None:
    content = (shards / "manifest.json").read_bytes()
    (shards / "manifest.json").write_bytes(content[: len(content) // 2])
    assert kinds(shards) == [("manifest", "manifest.json")]
    (shards / "manifest.json").unlink()
    assert kinds(shards) == [("manifest", "manifest.json")]


MANIFEST_DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "binary": lambda content: bytes(range(256)),
    "another object": lambda content: b"[{}]",
    "deep": lambda content: b"[" * 100_000,
    "flipped": lambda content: content.replace(b'"documents": ', b'"documents": 1', 1),
    "missing": lambda content: None,
}


@pytest.mark.parametrize("damage", sorted(MANIFEST_DAMAGES))
def test_shards_of_a_damaged_manifest_are_built_again(
    shards: Path, tokenizer_folder: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = content_of(shards)
    file = shards / "manifest.json"
    content = MANIFEST_DAMAGES[damage](file.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"prepare the shards again|build one with `malmoi prepare`"):
        read_manifest(shards)
    again = prepare(tmp_path, tokenizer_folder)
    assert again == shards and content_of(shards) == before
    assert "manifest.json: " in caplog.text and "; building it again" in caplog.text
    assert [path.name for path in shards.parent.iterdir() if not path.name.startswith(".source-hashes")] == [
        shards.name
    ]


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.idx", "val-00000.bin", "val-00000.idx"])
def test_shards_with_a_file_cut_or_missing_are_built_again(
    shards: Path, tokenizer_folder: Path, tmp_path: Path, name: str
) -> None:
    before = content_of(shards)
    for damage in (lambda file: file.write_bytes(file.read_bytes()[:-1]), Path.unlink):
        damage(shards / name)
        assert prepare(tmp_path, tokenizer_folder) == shards and content_of(shards) == before


def test_other_files_in_a_damaged_shard_folder_are_not_deleted(
    shards: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (shards / "notes.txt").write_text("내 글", encoding="utf-8")
    prepare(tmp_path, tokenizer_folder)
    (shards / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"damaged, and holds other files \(notes\.txt\); move these"):
        prepare(tmp_path, tokenizer_folder)
    assert (shards / "notes.txt").is_file()
