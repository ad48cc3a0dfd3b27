"""No flipped bit of a shard is trained on: shards are read through once, and again whenever a file of them changes."""

import os
import random
import shutil
from pathlib import Path

import pytest

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline import verified_shards
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.pipeline.verified_shards import damage_of_any_byte
from malmoi.data_prep.shards.verify import verify_shards


@pytest.fixture
def corpus(reviews: Path, tmp_path: Path) -> CorpusSettings:
    with reviews.open(encoding="utf-8") as stream:
        lines = "".join(line for line, _ in zip(stream, range(500), strict=False))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    return CorpusSettings(input=(str(tmp_path / "a.jsonl"),))


def flip(file: Path, bit: int) -> None:
    """Flip a bit in place, with the time of modification set back."""
    status, content = file.stat(), bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_flipped_bit_of_any_shard_file_is_seen_and_the_shards_are_built_again(
    corpus: CorpusSettings, tokenizer_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare() -> Path:
        return prepare_shards(corpus, DataSettings(val_fraction=0.1), tokenizer_folder, tmp_path / "out")

    folder = prepare()
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    chance = random.Random(0)
    for name in whole:
        flip(folder / name, chance.randrange(8 * len(whole[name])))
        caplog.clear()
        assert prepare() == folder
        assert f"{folder / name}" in caplog.text and "building it again" in caplog.text
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_shards_that_nobody_touched_are_read_through_once(
    corpus: CorpusSettings, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare_shards(corpus, DataSettings(), tokenizer_folder, tmp_path / "out")
    read: list[Path] = []
    monkeypatch.setattr(verified_shards, "verify_shards", lambda path: read.append(path) or verify_shards(path))
    assert damage_of_any_byte(folder) == damage_of_any_byte(folder) == "" and read == [folder]
    copy = tmp_path / "copy" / folder.name
    shutil.copytree(folder, copy)
    assert damage_of_any_byte(copy) == damage_of_any_byte(copy) == "" and read == [folder, copy]
    os.utime(copy / "manifest.json")
    assert damage_of_any_byte(copy) == "" and read == [folder, copy, copy]


def test_a_memory_that_is_damaged_is_none(corpus: CorpusSettings, tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = prepare_shards(corpus, DataSettings(), tokenizer_folder, tmp_path / "out")
    memory = folder.parent / f".{folder.name}.verified.json"
    for content in (b"", b"{", b"[1]", b"\xff"):
        memory.write_bytes(content)
        assert damage_of_any_byte(folder) == ""
        assert memory.read_bytes() != content


def test_in_a_folder_that_cannot_be_written_to_rank_0_alone_reads_all_shards(
    corpus: CorpusSettings, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare_shards(corpus, DataSettings(), tokenizer_folder, tmp_path / "out")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(verified_shards, "lock_if_possible", refuse)
    flip(folder / "train-00000.bin", 100)
    assert "train-00000.bin: its content changed" in damage_of_any_byte(folder)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert damage_of_any_byte(folder) == ""
