"""Files, folders, globs and URLs name the same files, and what cannot be read is named before anything is built."""

import gzip
import shutil
from pathlib import Path

import fsspec
import pytest

from malmoi.configs.corpus import CorpusSettings, SourceSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.data_prep.shards.manifest import read_manifest
from malmoi.errors import UserError


def names(*inputs: str | Path) -> list[str]:
    return [Path(file.name).name for file in corpus_files(CorpusSettings(input=tuple(map(str, inputs))))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("나\n", encoding="utf-8")
    (tmp_path / "sub" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    (tmp_path / "picture.png").write_bytes(b"")
    return tmp_path


def test_folders_and_globs_are_sorted_and_each_file_comes_once(folder: Path) -> None:
    assert names(folder) == ["b.txt", "a.jsonl.gz"]
    assert names(folder / "**" / "*.jsonl.gz", folder) == ["a.jsonl.gz", "b.txt"]
    assert names(folder / "b.txt", folder / "*.txt") == ["b.txt"]


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    for name, message in {
        "none.txt": "no such file or folder",
        "*.csv": "no file matches",
        "picture.png": "no reader for this format",
        "empty": "no file to be read in this folder",
    }.items():
        with pytest.raises(UserError, match=message):
            names(folder / name)
    with pytest.raises(UserError, match=r"corpus\.input is empty"):
        names()
    with pytest.raises(UserError, match="both set"):
        corpus_files(CorpusSettings(input=("a.txt",), sources=(SourceSettings("a", ("a.txt",)),)))


@pytest.mark.parametrize("root", ["memory://corpus", "file://{folder}"])
def test_urls(folder: Path, root: str) -> None:
    root = root.format(folder=folder)
    if root.startswith("memory"):
        filesystem = fsspec.filesystem("memory")
        for file in ("b.txt", "sub/a.jsonl.gz"):
            filesystem.pipe_file(f"/corpus/{file}", (folder / file).read_bytes())
    for name, expected in ((root, ["나", "x"]), (f"{root}/*.txt", ["나"]), (f"{root}/**/*.gz", ["x"])):
        corpus = CorpusSettings(input=(name,))
        assert [document.text for document in read_documents(corpus_files(corpus), corpus)] == expected
    with pytest.raises(UserError, match="no such file"):
        names(f"{root}/missing.txt")
    with pytest.raises(UserError, match="cannot be opened"):
        names("nosuchprotocol://bucket/a.txt")


def test_errors_of_a_url_name_it(folder: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/bad.txt", b"ok\n\xff\xff\n")
    corpus = CorpusSettings(input=("memory://bad.txt",))
    with pytest.raises(UserError, match=r"memory://bad\.txt:2: not UTF-8 at byte 3"):
        list(read_documents(corpus_files(corpus), corpus))


def test_what_malmoi_wrote_into_the_folder_that_it_reads_is_no_text(
    tmp_path: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shards, a tokenizer and a run are among the text: the second command reads what the first did."""
    text = tmp_path / "text"
    (text / "deep").mkdir(parents=True)
    (text / "deep" / "a.txt").write_text("글\n" * 50, encoding="utf-8")
    # A manifest of somebody else's, beside text.
    (text / "deep" / "manifest.json").write_text('{"text": "남의 글"}', encoding="utf-8")
    shutil.copytree(tokenizer_folder, text / "tokenizer")
    run = text / "run"
    (run / "checkpoints").mkdir(parents=True)
    for file in ("config.yaml", "environment.json", "metrics.jsonl", "checkpoints/manifest.json"):
        (run / file).write_text("{}", encoding="utf-8")
    caplog.set_level("INFO")
    corpus = CorpusSettings(input=(str(text),))
    folders = [prepare_shards(corpus, DataSettings(), tokenizer_folder, text / "shards") for _ in range(2)]
    assert folders[0] == folders[1]
    assert [Path(source.name).name for source in read_manifest(folders[0]).sources] == ["a.txt", "manifest.json"]
    assert [document.text for document in read_documents(corpus_files(corpus), corpus)] == ["글"] * 50 + ["남의 글"]
    for ours in (folders[0], text / "tokenizer", run):
        assert f"passed over {ours}: it holds shards, a tokenizer or a run" in caplog.text
    # What is named is meant.
    assert names(text / "tokenizer") == ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]


def test_what_malmoi_wrote_beside_remote_text_is_no_text() -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.txt", "own/config.yaml", "own/environment.json", "own/model/merges.txt"):
        store.pipe_file(f"/mixed/{name}", b"x\n")
    assert [file.name for file in corpus_files(CorpusSettings(input=("memory://mixed",)))] == ["memory:///mixed/a.txt"]


def test_hidden_files_of_a_folder_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "글.txt").write_text("가\n", encoding="utf-8")
    (tmp_path / ".hidden").mkdir()
    for name in (".draft.txt", ".hidden/notes.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert [file.name for file in corpus_files(CorpusSettings(input=(str(tmp_path),)))] == [str(tmp_path / "글.txt")]
