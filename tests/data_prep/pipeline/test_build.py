"""The same bytes from any number of workers, and from a build that was killed at any instant."""

import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

from malmoi.configs.corpus import CleaningSettings, CorpusSettings, TextSettings
from malmoi.configs.data import DataSettings, ShardSettings
from malmoi.data_prep.pipeline import build, encode_chunk, fingerprint
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.pipeline.encode_chunk import is_validation
from malmoi.data_prep.readers import chunks
from malmoi.data_prep.readers.chunks import Chunk
from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.data_prep.shards.indexed_dataset import open_shard
from malmoi.data_prep.shards.manifest import Manifest, read_manifest
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.data_prep.shards.verify import verify_shards
from malmoi.errors import UserError
from tests.data_prep.building import Build, content_of, wait_until
from tests.time_limits import seconds

SHARD_TOKENS = 150_000
KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(reviews: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the reviews, built by one process without a kill."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return Build(tokenizer_folder, out, reviews, workers=1, shard_tokens=SHARD_TOKENS).folder()


def documents_in(folder: Path) -> Iterator[tuple[str, list[int]]]:
    manifest = read_manifest(folder)
    for name, split in (("train", manifest.train), ("val", manifest.val)):
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
    expected: dict[str, list[list[int]]] = {"train": [], "val": []}
    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        expected["val" if is_validation(text.encode(), 0.01) else "train"].append([bos, *encoding.ids, eos])
    found: dict[str, list[list[int]]] = {"train": [], "val": []}
    for name, ids in documents_in(undisturbed):
        found[name].append(ids)
    assert found == expected
    manifest = read_manifest(undisturbed)
    assert manifest.train.counts.bytes + manifest.val.counts.bytes == sum(len(text.encode()) for text in texts)
    assert manifest.train.counts.characters + manifest.val.counts.characters == sum(map(len, texts))
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
    """Kill builds at random moments, each resuming the one before, and compare what they end in."""
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
    """Inodes of the finished shards in the last commit, checked to hold those of the commit before."""
    states = list(out.glob(".*.building-*/.work/state.json"))
    if not states:
        return before
    state = json.loads(states[0].read_text(encoding="utf-8"))
    folder = states[0].parents[1]
    names = [record["name"] for split in ("train", "val") for record in state[split]["finished"]]
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
    assert psutil.wait_procs(children, timeout=seconds(10))[1] == []


def test_a_dead_worker_stops_the_build_and_the_next_resumes_it(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    build = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS)
    builder = psutil.Process(build.process.pid)

    def workers() -> list[psutil.Process]:
        servers = [child for child in builder.children() if "forkserver" in " ".join(child.cmdline())]
        return [worker for server in servers for worker in server.children()]

    wait_until(lambda: bool(workers()))
    workers()[0].kill()
    error = build.error()
    assert "RunFailed: a worker process died, perhaps for want of memory; set data.workers lower" in error
    assert "Traceback" not in error
    folder = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS).folder()
    assert content_of(folder) == content_of(undisturbed)


def test_a_damaged_leftover_is_not_believed(
    undisturbed: Path, reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    build = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS)
    wait_until(
        lambda: any(
            'finished": [{' in f.read_text(encoding="utf-8")
            for f in (tmp_path / "out").glob(".*.building-*/.work/state.json")
        )
    )
    build.kill()
    (shard,) = (tmp_path / "out").glob(".*.building-*/train-00000.bin")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    folder = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2, shard_tokens=SHARD_TOKENS).folder()
    assert content_of(folder) == content_of(undisturbed)


def prepared(tmp_path: Path, tokenizer: Path, corpus: CorpusSettings, **data: object) -> Manifest:
    settings = DataSettings(workers=1, **data)  # type: ignore[arg-type]  # any field
    return read_manifest(prepare_shards(corpus, settings, tokenizer, tmp_path / "out"))


def test_changed_content_never_meets_old_shards(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    corpus = CorpusSettings(input=(str(file),))
    file.write_text("하나\n", encoding="utf-8")
    os.utime(file, (1e9, 1e9))
    first = prepared(tmp_path, tokenizer_folder, corpus)
    assert prepared(tmp_path, tokenizer_folder, corpus) == first
    file.write_text("두울\n", encoding="utf-8")
    second = prepared(tmp_path, tokenizer_folder, corpus)
    assert second.fingerprint != first.fingerprint
    for changed in (
        replace(corpus, document="file"),
        replace(corpus, normalize="none"),
        replace(corpus, cleaning=CleaningSettings(remove_emails=True)),
    ):
        assert prepared(tmp_path, tokenizer_folder, changed).fingerprint != second.fingerprint
    assert prepared(tmp_path, tokenizer_folder, corpus, shard_tokens=5).fingerprint != second.fingerprint


EVALUATION = "package:evaluation/fewshot/tasks/data/nsmc_examples.jsonl.gz"
CHANGES: dict[str, object] = {
    "text_field": "body",
    "document": "paragraph",
    "normalize": "none",
    "quotes": "none",
    "max_document_bytes": 2048,
    "cleaning.min_chars": 1,
    "cleaning.max_chars": 99,
    "cleaning.exact_dedup": True,
    "cleaning.near_dedup_threshold": 0.9,
    "cleaning.min_hangul_ratio": 0.01,
    "cleaning.dedup_lines": True,
    "cleaning.remove_emails": True,
    "cleaning.remove_resident_numbers": True,
    "cleaning.decontaminate": (EVALUATION,),
    "val_fraction": 0.5,
    "shard_tokens": 7,
}
CHANGES_NOTHING: dict[str, object] = {
    "encoding": "auto",
    "on_error": "skip",
    "max_error_rate": 0.5,
    "workers": 2,
    "executor": "local",
    "scheduler": "tcp://nobody:1",
    "shared_filesystem": False,
    # Of what is looked for, where nothing is.
    "cleaning.decontaminate_run": 20,
    "cleaning.decontaminate_action": "report",
}


def test_the_name_is_that_of_content_tokenizer_and_every_setting_that_decides_bytes(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    cleaning = [f"cleaning.{entry.name}" for entry in fields(CleaningSettings)]
    decided = {entry.name for kind in (TextSettings, ShardSettings) for entry in fields(kind)} | set(cleaning)
    assert decided == {*CHANGES, *CHANGES_NOTHING}
    (tmp_path / "a.txt").write_text("한글 문장\n", encoding="utf-8")

    def name(setting: str = "", value: object = None, tokenizer: Path = tokenizer_folder) -> str:
        group, _, inner = setting.rpartition(".")
        corpus, data = CorpusSettings(input=(str(tmp_path / "a.txt"),)), DataSettings(workers=1)
        if group:
            corpus = replace(corpus, cleaning=replace(corpus.cleaning, **{inner: value}))
        elif setting and hasattr(data, setting):
            data = replace(data, **{setting: value})  # type: ignore[arg-type]  # any field
        elif setting:
            corpus = replace(corpus, **{setting: value})  # type: ignore[arg-type]  # any field
        return prepare_shards(corpus, data, tokenizer, tmp_path / "out").name

    plain = name()
    assert {setting: name(setting, value) for setting, value in CHANGES_NOTHING.items()} == dict.fromkeys(
        CHANGES_NOTHING, plain
    )
    names = {setting: name(setting, value) for setting, value in CHANGES.items()}
    assert len({plain, *names.values()}) == 1 + len(CHANGES), names
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, other)
    assert name(tokenizer=other) == plain
    description = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(description + "\n", encoding="utf-8")
    assert name(tokenizer=other) != plain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FORMAT_VERSION", 99)
        patch.setattr(fingerprint, "FORMAT_VERSION", 99)
        with pytest.raises(UserError, match="format version 99"):
            name()


def test_the_manifest_records_all_that_the_shards_are_made_of(tokenizer_folder: Path, tmp_path: Path) -> None:
    emails = "연락 a@b.kr"
    numbers = "번호 900101-1234567"
    lines = ["짧", "긴 " * 40 + "글", "no hangul at all", "같은 글", "같은 글", emails, numbers, "c@d.kr"]
    records = [{"text": text} for text in [*lines, "가 나\n가 나\n다"]] + [{"other": 1}, {"text": 5}]
    content = "\n".join(json.dumps(record) for record in records).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    cleaning = CleaningSettings(
        min_chars=2, max_chars=50, min_hangul_ratio=0.1, exact_dedup=True, dedup_lines=True, remove_emails=True,
        remove_resident_numbers=True,
    )  # fmt: skip
    corpus = CorpusSettings(input=(str(tmp_path / "a.jsonl"),), cleaning=cleaning, on_error="skip", max_error_rate=0.5)
    folder = prepare_shards(corpus, DataSettings(val_fraction=0, shard_tokens=6), tokenizer_folder, tmp_path / "out")
    manifest = read_manifest(folder)
    assert manifest.cleaned == {
        "too_short": 1, "too_long": 1, "little_hangul": 1, "emptied": 1, "exact_duplicate": 1, "repeated_line": 1,
        "email": 2, "resident_number": 1,
    }  # fmt: skip
    assert manifest.skipped == {"field": 1, "type": 1}
    kept = ["같은 글", "연락 ", "번호 ", "가 나\n다"]
    counts = manifest.train.counts
    assert (counts.documents, counts.bytes) == (4, sum(len(text.encode()) for text in kept))
    assert counts.characters == sum(map(len, kept))
    assert counts.tokens == sum(len(open_shard(folder / stem).tokens) for stem in manifest.train.stems)
    (source,) = manifest.sources
    assert (source.bytes, source.blake2b) == (len(content), blake2b(content, digest_size=16).hexdigest())
    assert manifest.tokenizer == blake2b((tokenizer_folder / "tokenizer.json").read_bytes(), digest_size=16).hexdigest()
    assert manifest.settings["corpus.cleaning.max_chars"] == 50 and manifest.settings["data.shard_tokens"] == 6
    assert manifest.format_version == build.FORMAT_VERSION and manifest.fingerprint == folder.name
    found = {
        file.name: (file.stat().st_size, blake2b(file.read_bytes(), digest_size=16).hexdigest())
        for file in folder.iterdir()
    }
    del found["manifest.json"]
    assert found == {record.name: (record.bytes, record.blake2b) for record in manifest.files}


def test_workers_are_never_forked_from_a_process_with_threads(
    reviews: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    build = Build(tokenizer_folder, tmp_path / "out", reviews, workers=2)
    builder = psutil.Process(build.process.pid)
    # A worker that was forked from the builder itself would be its child, with the builder's command line.
    wait_until(lambda: len(builder.children(recursive=True)) >= 3)
    assert [child for child in builder.children() if "one_build.py" in " ".join(child.cmdline())] == []
    build.kill()


def test_another_place_or_name_of_the_same_content_is_the_same_corpus(tokenizer_folder: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("같은 글\n", encoding="utf-8")
    one, other = (
        prepared(tmp_path, tokenizer_folder, CorpusSettings(input=(str(tmp_path / name),)))
        for name in ("a.txt", "b.txt")
    )
    assert one.fingerprint == other.fingerprint


def append(file: Path) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write("덧붙인 글\n" * 500)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def rewrite(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace("글", "말"), encoding="utf-8")


def rewrite_and_set_its_time_back(file: Path) -> None:
    before = file.stat()
    rewrite(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_new_permissions_of_a_file_that_is_read_stop_nothing(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    file = tmp_path / "a.txt"
    file.write_text("".join(f"글 {number}\n" for number in range(3000)), encoding="utf-8")
    read = encode_chunk.bytes_of
    modes = itertools.cycle((0o600, 0o640))

    def read_and_change(chunk: Chunk, source: SourceFile) -> bytes:
        file.chmod(next(modes))
        return read(chunk, source)

    monkeypatch.setattr(encode_chunk, "bytes_of", read_and_change)
    manifest = prepared(tmp_path, tokenizer_folder, CorpusSettings(input=(str(file),)), shard_tokens=1)
    assert manifest.train.counts.documents + manifest.val.counts.documents == 3000


@pytest.mark.parametrize("change", [append, cut_short, rewrite, rewrite_and_set_its_time_back])
@pytest.mark.parametrize("changed_at_chunk", [1, 20])
def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_of_it_is_kept(
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    changed_at_chunk: int,
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    file, copy = tmp_path / "a.txt", tmp_path / "copy.txt"
    file.write_text("".join(f"글 {number}\n" for number in range(3000)), encoding="utf-8")
    shutil.copy2(file, copy)
    # Shards of a chunk each: every chunk ends in a commit.
    corpus, data = CorpusSettings(input=(str(file),)), DataSettings(workers=1, shard_tokens=1, val_fraction=0)
    read = encode_chunk.bytes_of
    seen: list[int] = []

    def read_and_change(chunk: Chunk, source: SourceFile) -> bytes:
        seen.append(chunk.start)
        if len(seen) == changed_at_chunk:
            change(file)
        return read(chunk, source)

    monkeypatch.setattr(encode_chunk, "bytes_of", read_and_change)
    with pytest.raises(UserError, match=r"a\.txt: changed while it was read; leave it alone and run again"):
        prepare_shards(corpus, data, tokenizer_folder, tmp_path / "out")
    assert len(seen) < 25, "reported at the next commit"
    monkeypatch.setattr(encode_chunk, "bytes_of", read)
    shutil.copy2(copy, file)
    folder = prepare_shards(corpus, data, tokenizer_folder, tmp_path / "out")
    alone = prepare_shards(replace(corpus, input=(str(copy),)), data, tokenizer_folder, tmp_path / "alone")
    assert folder.name == alone.name
    assert list(documents_in(folder)) == list(documents_in(alone))


def test_a_remote_file_that_changes_while_it_is_read_is_refused(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/changing.txt", "글\n".encode() * 100)
    hashed = build.source_records

    def hash_and_change(*arguments: Any) -> Any:
        records = hashed(*arguments)
        store.pipe_file("/changing.txt", "말\n".encode() * 100)
        return records

    monkeypatch.setattr(build, "source_records", hash_and_change)
    corpus = CorpusSettings(input=("memory://changing.txt",))
    with pytest.raises(UserError, match=r"memory://changing\.txt: changed while it was read"):
        prepare_shards(corpus, DataSettings(workers=1), tokenizer_folder, tmp_path / "out")


def test_a_stop_names_file_and_line_in_whichever_chunk(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 50_000)
    file = tmp_path / "big.txt"
    lines = ["열 바이트쯤"] * 20_000
    with file.open("wb") as stream:
        stream.write("\n".join(lines[:15_000]).encode() + b"\n\xff\n" + "\n".join(lines[15_000:]).encode())
    with pytest.raises(UserError, match=r"big\.txt:15001: not UTF-8 at byte 255000"):
        prepared(tmp_path, tokenizer_folder, CorpusSettings(input=(str(file),)))


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_499, "uint16"), (65_500, "int32")])
def test_width_of_tokens(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    from tokenizers import models, pre_tokenizers

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "글": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("글 글\n", encoding="utf-8")
    folder = prepare_shards(
        CorpusSettings(input=(str(tmp_path / "a.txt"),)),
        DataSettings(val_fraction=0, workers=1),
        tmp_path / "tokenizer",
        tmp_path,
    )
    shard = open_shard(folder / "train-00000")
    assert str(shard.tokens.dtype) == dtype
    assert shard.document(0).tolist() == [0, vocabulary - 1, vocabulary - 1, 1]
    assert verify_shards(folder) == ()


def test_a_file_whose_name_is_no_utf_8_is_prepared(tokenizer_folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode("글.txt".encode("cp949"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / name).write_text("하나\n", encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "text"),))
    for _ in range(2):
        assert Path(prepared(tmp_path, tokenizer_folder, corpus).sources[0].name).name == name
