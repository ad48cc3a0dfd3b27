"""Nodes that share a disk build once; nodes that do not build one each and must agree."""

import os
import threading
import time
from pathlib import Path

import pytest

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings, SharedFilesystem
from malmoi.data_prep.pipeline import nodes
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.pipeline.nodes import Node, manifest_hash, may_build, require_agreement, this_node
from malmoi.data_prep.shards.manifest import MANIFEST_FILE
from malmoi.errors import UserError


def test_where_this_process_runs() -> None:
    assert this_node({}).count == 1
    slurm = {"SLURM_NODEID": "3", "SLURM_NNODES": "4", "SLURM_JOB_ID": "7"}
    assert (this_node(slurm).number, this_node(slurm).count) == (3, 4)
    torchrun = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert (this_node(torchrun).number, this_node(torchrun).count) == (1, 2)
    assert this_node(torchrun).nonce == this_node({**torchrun, "RANK": "0"}).nonce
    assert this_node(torchrun).nonce != this_node({**torchrun, "MASTER_PORT": "2"}).nonce


def test_a_shared_disk_is_recognized(tmp_path: Path) -> None:
    def node_0() -> None:
        time.sleep(0.3)
        assert may_build(tmp_path, True, Node(0, 2, "n"))

    thread = threading.Thread(target=node_0)
    thread.start()
    assert not may_build(tmp_path, True, Node(1, 2, "n"))
    thread.join()


def test_a_disk_of_the_nodes_own_that_was_said_to_be_shared_is_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "PROMISED_SECONDS", 0.3)
    may_build(tmp_path / "node0", True, Node(0, 2, "n"))
    may_build(tmp_path / "node1", True, Node(0, 2, "an earlier start"))
    with pytest.raises(UserError, match="node 1 does not see what node 0 writes"):
        may_build(tmp_path / "node1", True, Node(1, 2, "n"))


@pytest.mark.parametrize("setting", ["auto", False])
def test_without_a_promise_every_node_may_build_and_none_waits_or_leaves_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: SharedFilesystem
) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(nodes.time, "sleep", wait)
    for number in (0, 1):
        assert may_build(tmp_path / "out", setting, Node(number, 2, "n"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shared", [True, False])
def test_nodes_under_auto_build_once_on_a_shared_disk_and_once_each_on_their_own(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    (tmp_path / "corpus.txt").write_text("글", encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "corpus.txt"),))
    monkeypatch.setenv("SLURM_NNODES", "2")
    built = []
    for number in ("0", "1"):
        monkeypatch.setenv("SLURM_NODEID", number)
        folder = prepare_shards(corpus, DataSettings(), tokenizer_folder, tmp_path / ("out" if shared else number))
        built.append((folder / MANIFEST_FILE).stat().st_ino)
    assert (built[0] == built[1]) is shared
    assert not list(tmp_path.rglob(".seen-by-all-*"))


def test_marks_of_earlier_starts_do_not_pile_up(tmp_path: Path) -> None:
    may_build(tmp_path, True, Node(0, 2, "long ago"))
    os.utime(tmp_path / ".seen-by-all-long ago", (1e9, 1e9))
    may_build(tmp_path, True, Node(0, 2, "just before"))
    may_build(tmp_path, True, Node(0, 2, "now"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [".seen-by-all-just before", ".seen-by-all-now"]


def test_nodes_with_the_same_corpus_agree_and_others_stop(tokenizer_folder: Path, tmp_path: Path) -> None:
    hashes = []
    for node, text in (("a", "글"), ("b", "글"), ("c", "다른 글")):
        (tmp_path / f"{node}.txt").write_text(text, encoding="utf-8")
        corpus = CorpusSettings(input=(str(tmp_path / "corpus.txt"),))
        (tmp_path / f"{node}.txt").rename(tmp_path / "corpus.txt")
        hashes.append(manifest_hash(prepare_shards(corpus, DataSettings(), tokenizer_folder, tmp_path / node)))
    require_agreement(hashes[:2])
    with pytest.raises(UserError, match=r"rank 2 holds other shards than rank 0 \(1 of 3 ranks differ\)"):
        require_agreement(hashes)
