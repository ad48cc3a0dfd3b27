"""A reader of a module outside the package works in parallel builds, killed and resumed, to the same bytes."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.shards.indexed_dataset import open_shard
from malmoi.data_prep.shards.manifest import read_manifest
from tests.data_prep.building import Build, content_of, wait_until

SHARD_TOKENS = 20_000
PLUGINS = {
    # As of `fortune`: documents between lines of a percent sign. Cut into chunks, and parsed in the workers.
    ".fortune": """
import re
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.errors import RecordError
from malmoi.data_prep.readers.spec import LineFormat, RawDocument, ReaderSpec

def documents(chunk, settings):
    block, first = [], 1
    for number, line in chunk.lines:
        if isinstance(line, RecordError):
            yield line
        elif line == "%":
            yield RawDocument("\\n".join(block), first)
            block, first = [], number + 1
        else:
            block.append(line)
    yield RawDocument("\\n".join(block), first, chunk.ends_inside)

END = re.compile(rb"\\n%\\n")
READERS[".fortune"] = ReaderSpec(lines=LineFormat(documents, boundary=lambda file, settings: END))
""",
    # Read by one process from beginning to end.
    ".quoted": """
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.errors import RecordError
from malmoi.data_prep.readers.source_file import open_text
from malmoi.data_prep.readers.spec import ReaderSpec

def records(file, settings):
    with open_text(file) as stream:
        for line in stream:
            if line.startswith("> "):
                yield line[2:].rstrip("\\n")
            else:
                yield RecordError("format", 0, "no quotation; begin the line with >")

READERS[".quoted"] = ReaderSpec(records)
""",
}


def written(texts: list[str], suffix: str, folder: Path, module: str = "my_reader") -> Path:
    """A file of the plugin's format, and the plugin, in `folder`."""
    (folder / f"{module}.py").write_text(PLUGINS[suffix], encoding="utf-8")
    file = folder / f"texts{suffix}"
    parts = [f"{text}\n%\n" if suffix == ".fortune" else f"> {text}\n" for text in texts]
    file.write_text("".join(parts), encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", sorted(PLUGINS))
def test_a_build_with_a_plugin_s_reader_that_is_killed_resumes_to_the_same_bytes(
    review_lines: list[str], tokenizer_folder: Path, tmp_path: Path, suffix: str
) -> None:
    texts = [f"{review_lines[number % len(review_lines)]} {number}" for number in range(8_000)]
    file = written(texts, suffix, tmp_path)

    def build(name: str, workers: int) -> Build:
        return Build(
            tokenizer_folder, tmp_path / name, file, plugins=("my_reader",), cwd=tmp_path,
            workers=workers, shard_tokens=SHARD_TOKENS, val_fraction=0.0,
        )  # fmt: skip

    killed = build("out", workers=2)
    wait_until(lambda: bool(list((tmp_path / "out").glob(".*.building-*/train-00001.bin"))))
    killed.kill()
    assert not list((tmp_path / "out").glob("*/manifest.json")), "killed in the middle"
    resumed = build("out", workers=2)
    folder = resumed.folder()
    assert content_of(folder) == content_of(build("undisturbed", workers=1).folder())
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    found = []
    for stem in read_manifest(folder).train.stems:
        shard = open_shard(folder / stem)
        found += [tokenizer.decode(shard.document(number).tolist()) for number in range(len(shard.lengths))]
    assert found == texts


def test_workers_of_a_dask_cluster_find_a_plugin_of_the_builder_s_folder(
    review_lines: list[str], tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    corpus = CorpusSettings(input=(str(written(review_lines, ".fortune", tmp_path, "dask_reader")),))
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setitem(READERS, ".fortune", READERS[".txt"])
    del READERS[".fortune"]  # what the plugin registers goes when the test ends
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask")
    ) as cluster:
        # Only now, so that the worker's current folder is another one.
        monkeypatch.chdir(tmp_path)
        data = DataSettings(executor="dask", scheduler=cluster.scheduler_address)
        folder = prepare_shards(corpus, data, tokenizer_folder, tmp_path / "out", ("dask_reader",))
    manifest = read_manifest(folder)
    assert manifest.train.counts.documents + manifest.val.counts.documents == len(review_lines)


def test_a_changed_reader_never_meets_the_shards_of_the_old_one(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mine").write_text("> 하나\n> 둘\n", encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.mine"),))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(READERS, ".mine", READERS[".txt"])

    def name(module: str, source: str) -> str:
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        if source:
            del READERS[".mine"]
        return prepare_shards(corpus, DataSettings(workers=1), tokenizer_folder, tmp_path / "out", (module,)).name

    source = PLUGINS[".quoted"].replace(".quoted", ".mine")
    alias = name("alias_of_text", "")
    first = name("reader_one", source)
    assert first != alias
    assert name("reader_two", source + "# a change\n") != first
