"""Files, folders, globs and URLs name the same files, and what cannot be read is named before anything is built."""

import gzip
import os
import shutil
import socket
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
from tests.permissions import permissions_of_others


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


def test_a_part_of_a_folder_that_cannot_be_read_is_refused_by_name(folder: Path) -> None:
    locked = folder / "sub" / "locked"
    locked.mkdir()
    for mode in (0o000, 0o444):
        (locked / "more.txt").write_text("다\n", encoding="utf-8")
        locked.chmod(mode)
        for name in (folder, folder / "**" / "*.txt", folder / "*" / "*" / "*.txt", locked):
            with permissions_of_others(), pytest.raises(UserError, match=r"sub/locked.*cannot be read") as error:
                names(name)
            assert "\n" not in str(error.value)
        locked.chmod(0o755)
    assert names(folder) == ["b.txt", "a.jsonl.gz", "more.txt"]


def test_a_link_to_what_is_missing_is_refused_by_name(folder: Path) -> None:
    (folder / "news").symlink_to(folder / "gone")
    with pytest.raises(UserError, match=r"news: a link to .*gone, which is missing"):
        names(folder)
    (folder / "news").rename(folder / ".#news")
    assert names(folder) == ["b.txt", "a.jsonl.gz"]


def test_a_broken_link_in_what_malmoi_wrote_refuses_no_text(folder: Path) -> None:
    (folder / "run").mkdir()
    for name in ("config.yaml", "environment.json"):
        (folder / "run" / name).write_text("{}", encoding="utf-8")
    (folder / "run" / "latest").symlink_to("gone")
    assert names(folder) == ["b.txt", "a.jsonl.gz"]


def test_a_linked_folder_is_read_once_and_a_circle_ends(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "c.txt").write_text("라\n", encoding="utf-8")
    (elsewhere / "back").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked_again").symlink_to(elsewhere)
    (folder / "a_copy_of_sub").symlink_to(folder / "sub")
    caplog.set_level("INFO")
    found = corpus_files(CorpusSettings(input=(str(folder),)))
    assert [file.name.removeprefix(f"{folder}/") for file in found] == ["b.txt", "linked/c.txt", "sub/a.jsonl.gz"]
    for link in ("linked/back", "linked_again", "a_copy_of_sub"):
        assert f"passed over {folder}/{link}: the folder that it links to is read under another name" in caplog.text
    assert names(folder / "**" / "*.txt") == ["b.txt", "c.txt"]


@pytest.mark.parametrize("root", ["{folder}", "file://{folder}"])
def test_files_of_an_unknown_format_are_named_once(folder: Path, caplog: pytest.LogCaptureFixture, root: str) -> None:
    for name in ("a.hwp", "b.pdf", "c.md", ".hidden", "b.txt~", "b.txt.lock", "_SUCCESS", "sub/d.docx"):
        (folder / name).touch()
    socket.socket(socket.AF_UNIX).bind(str(folder / "s.sock")) if not root.startswith("file") else None
    for _ in range(2):
        names(root.format(folder=folder))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    count = 5 if root.startswith("file") else 6
    assert f"{folder}: {count} files of a format that is not read are left out (" in warnings[0]
    assert all(name in warnings[0] for name in ("a.hwp", "b.pdf", "c.md", f"and {count - 3} more"))


def test_folders_that_a_pattern_matches_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "picture.png").unlink()
    assert names(folder / "*") == ["b.txt"]
    assert f"folders that match are left out ({folder}/sub)" in caplog.text


def test_a_pipe_is_refused_before_it_is_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    for name in ("pipe.txt", "*.txt", ""):
        with pytest.raises(UserError, match=r"pipe\.txt: a pipe, socket or device and no file"):
            names(folder / name)
    with pytest.raises(UserError, match=r"/dev/null: a pipe, socket or device"):
        names("/dev/null")
