"""The same bytes from any number of workers, and from a build that was killed at any instant."""

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

from configs.errors import BadInput
from configs.schema import CleaningSettings, CorpusSettings, DataSettings
from data_prep import chunks
from data_prep.build import open_split, prepare_shards
from data_prep.corpus import corpus_files, read_documents
from data_prep.manifest import Manifest, read_manifest
from data_prep.shards import open_shard
from data_prep.verify import verify_shards
from data_prep.work import is_held_out

sys.path.insert(0, str(Path(__file__).parent))
from building import Build, content_of, wait_until

SHARD_TOKENS = 150_000
KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(reviews: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the reviews, built by one process in peace."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return Build(tokenizer_folder, out, reviews, workers=1, shard_tokens=SHARD_TOKENS).folder()


def documents_in(folder: Path) -> Iterator[tuple[str, list[int]]]:
    manifest = read_manifest(folder)
    for name, split in (("train", manifest.train), ("held_out", manifest.held_out)):
        for stem in split.stems:
            shard = open_shard(folder / stem)
            for number in range(len(shard.lengths)):
                yield name, shard.document(number).tolist()


def test_shards_hold_every_document_as_the_reference_encodes_it(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    corpus = CorpusSettings(input=(str(reviews),))
    texts = [document.text for document in read_documents(corpus_files(corpus), corpus)]
    expected: dict[str, list[list[int]]] = {"train": [], "held_out": []}
    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        expected["held_out" if is_held_out(text, 0.01) else "train"].append([bos, *encoding.ids, eos])
    found: dict[str, list[list[int]]] = {"train": [], "held_out": []}
    for name, ids in documents_in(undisturbed):
        found[name].append(ids)
    assert found == expected
    manifest = read_manifest(undisturbed)
    assert manifest.train.counts.bytes + manifest.held_out.counts.bytes == sum(len(text.encode()) for text in texts)
    assert manifest.train.counts.characters + manifest.held_out.counts.characters == sum(map(len, texts))
    assert len(manifest.train.stems) > 3
    stream = open_split(undisturbed, "train")
    tokens = np.zeros(len(stream), dtype=np.int64)
    stream.read_into(0, tokens)
    assert tokens.tolist() == [token for ids in expected["train"] for token in ids]


@pytest.mark.parametrize("workers", [3])
def test_workers_change_no_byte(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path, workers: int
) -> None:
    folder = Build(tokenizer_folder, tmp_path, reviews, workers=workers, shard_tokens=SHARD_TOKENS).folder()
    assert folder.name == undisturbed.name
    assert content_of(folder) == content_of(undisturbed)


def kill_at_random(
    kills: int, undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path, seconds: float
) -> None:
    """Kill builds at random moments, each going on from the one before, and look at what comes of it."""
    chance = random.Random(5)
    expected = content_of(undisturbed)
    left = kills
    for round_ in range(1000):
        out = tmp_path / f"round{round_}" / "out"
        finished_before: dict[str, int] = {}
        while left:
            build = Build(tokenizer_folder, out, reviews, workers=2, shard_tokens=SHARD_TOKENS)
            time.sleep(chance.uniform(0.3, seconds))
            if build.process.poll() is not None:
                break
            build.kill()
            left -= 1
            finished_before = finished_shards(out, finished_before)
        folder = Build(tokenizer_folder, out, reviews, workers=2, shard_tokens=SHARD_TOKENS).folder()
        assert content_of(folder) == expected
        assert sorted(file.name for file in out.iterdir() if "building" in file.name) == []
        # A shard that was finished before the last kill is the same file still: not encoded twice.
        for name, inode in finished_before.items():
            assert (folder / name).stat().st_ino == inode
        if not left:
            return


def finished_shards(out: Path, before: dict[str, int]) -> dict[str, int]:
    """Inodes of the finished shards that the last commit tells of, seen to hold those of the commit before."""
    states = list(out.glob(".*.building-*/.work/state.json"))
    if not states:
        return before
    state = json.loads(states[0].read_text())
    folder = states[0].parents[1]
    names = [record["name"] for split in ("train", "held_out") for record in state[split]["finished"]]
    found = {name: (folder / name).stat().st_ino for name in names}
    assert {name: found.get(name) for name in before} == before
    return found


def test_killed_builds_end_in_the_same_bytes(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    kill_at_random(KILLS, undisturbed, reviews, tokenizer_folder, tmp_path, 3.0)


@pytest.mark.soak
def test_a_hundred_killed_builds_end_in_the_same_bytes(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    kill_at_random(100, undisturbed, reviews, tokenizer_folder, tmp_path, 5.0)


def test_a_killed_builder_leaves_no_worker_behind(reviews: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    build = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2)
    builder = psutil.Process(build.process.pid)
    wait_until(lambda: len(builder.children(recursive=True)) >= 3)
    children = builder.children(recursive=True)
    build.kill()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_dead_worker_stops_the_build_and_the_next_goes_on(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    build = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS)
    builder = psutil.Process(build.process.pid)
    servers: list[psutil.Process] = []
    while not servers or not servers[0].children():
        servers = [child for child in builder.children() if "forkserver" in " ".join(child.cmdline())]
        time.sleep(0.01)
    servers[0].children()[0].kill()
    assert "a worker process died" in build.error()
    folder = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS).folder()
    assert content_of(folder) == content_of(undisturbed)


def test_a_damaged_leftover_is_not_believed(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    build = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS)
    wait_until(
        lambda: any('finished": [{' in f.read_text() for f in (tmp_path / "out").glob(".*.building-*/.work/state.json"))
    )
    build.kill()
    (shard,) = (tmp_path / "out").glob(".*.building-*/train-00000.bin")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    folder = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS).folder()
    assert content_of(folder) == content_of(undisturbed)


def prepared(tmp_path: Path, tokenizer: Path, corpus: CorpusSettings, **data: object) -> Manifest:
    return read_manifest(prepare_shards(corpus, DataSettings(workers=1, **data), tokenizer, tmp_path / "out"))  # type: ignore[arg-type]


def test_changed_content_never_meets_old_shards(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    corpus = CorpusSettings(input=(str(file),))
    file.write_text("하나\n")
    os.utime(file, (1e9, 1e9))
    first = prepared(tmp_path, tokenizer_folder, corpus)
    assert prepared(tmp_path, tokenizer_folder, corpus) == first
    file.write_text("두울\n")
    second = prepared(tmp_path, tokenizer_folder, corpus)
    assert second.fingerprint != first.fingerprint
    for changed in (
        replace(corpus, document="file"),
        replace(corpus, normalise="none"),
        replace(corpus, cleaning=CleaningSettings(emails=True)),
    ):
        assert prepared(tmp_path, tokenizer_folder, changed).fingerprint != second.fingerprint  # type: ignore[arg-type]
    assert prepared(tmp_path, tokenizer_folder, corpus, shard_tokens=5).fingerprint != second.fingerprint


def test_another_place_or_name_of_the_same_content_is_the_same_corpus(tokenizer_folder: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("같은 글\n")
    one, other = (
        prepared(tmp_path, tokenizer_folder, CorpusSettings(input=(str(tmp_path / name),)))
        for name in ("a.txt", "b.txt")
    )
    assert one.fingerprint == other.fingerprint


def test_a_stop_names_file_and_line_in_whichever_chunk(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 50_000)
    file = tmp_path / "big.txt"
    lines = ["열 바이트쯤"] * 20_000
    with file.open("wb") as stream:
        stream.write("\n".join(lines[:15_000]).encode() + b"\n\xff\n" + "\n".join(lines[15_000:]).encode())
    with pytest.raises(BadInput, match=r"big\.txt:15001: not UTF-8 at byte 255000"):
        prepared(tmp_path, tokenizer_folder, CorpusSettings(input=(str(file),)))


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_499, "uint16"), (65_500, "int32")])
def test_width_of_tokens(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    from tokenizers import models, pre_tokenizers

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "글": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("글 글\n")
    folder = prepare_shards(
        CorpusSettings(input=(str(tmp_path / "a.txt"),)),
        DataSettings(held_out=0, workers=1),
        tmp_path / "tokenizer",
        tmp_path,
    )
    shard = open_shard(folder / "train-00000")
    assert str(shard.tokens.dtype) == dtype
    assert shard.document(0).tolist() == [0, vocabulary - 1, vocabulary - 1, 1]
    assert verify_shards(folder) == ()
