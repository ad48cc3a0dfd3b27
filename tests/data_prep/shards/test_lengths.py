"""The length histogram: every document in the bin that holds its length, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest

from malmoi.data_prep.shards.indexed_dataset import write_index
from malmoi.data_prep.shards.lengths import CHUNK, length_edges, length_histogram
from malmoi.data_prep.shards.manifest import Split, SplitCounts
from malmoi.errors import UserError


def write_documents(folder: Path, lengths: list[int], shard_tokens: int = 100) -> Split:
    """A split whose shards are closed at `shard_tokens` or a little above."""
    stems: list[str] = []
    held: list[int] = []
    for number, length in enumerate(lengths, 1):
        held.append(length)
        if sum(held) >= shard_tokens or number == len(lengths):
            stems.append(f"train-{len(stems):05d}")
            (folder / f"{stems[-1]}.bin").write_bytes(np.full(sum(held), 7, dtype="<u2").tobytes())
            with (folder / f"{stems[-1]}.idx").open("wb") as index:
                write_index(index, np.array(held, dtype=np.int32), np.dtype("<u2"))
            held = []
    return Split(tuple(stems), SplitCounts(len(lengths), sum(lengths), 0, 0))


def test_each_document_falls_into_the_bin_that_holds_its_length(tmp_path: Path) -> None:
    lengths = [1, 2, 2, 3, 8, 11, 12, 90, 91, 1000]
    split = write_documents(tmp_path, lengths)
    assert len(split.stems) > 1
    histogram = length_histogram(tmp_path, split)
    expected, _ = np.histogram(lengths, bins=histogram.edges)
    weighted, _ = np.histogram(lengths, bins=histogram.edges, weights=lengths)
    assert histogram.documents.tolist() == expected.tolist()
    assert histogram.tokens.tolist() == weighted.tolist()
    assert histogram.documents.sum() == len(lengths) and histogram.tokens.sum() == sum(lengths)


def test_the_edges_hold_every_length_that_an_index_can_hold() -> None:
    edges = length_edges()
    assert edges[0] == 1 and edges[-1] > np.iinfo(np.int32).max
    assert (np.diff(edges) > 0).all()


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = write_documents(tmp_path, [1 + number % 50 for number in range(500)], shard_tokens=10**6)
    expected = length_histogram(tmp_path, split)
    assert CHUNK > 500
    monkeypatch.setattr("malmoi.data_prep.shards.lengths.CHUNK", 7)
    assert length_histogram(tmp_path, split).tokens.tolist() == expected.tokens.tolist()


def test_of_very_many_documents_an_even_sample_is_counted(tmp_path: Path) -> None:
    split = write_documents(tmp_path, [4] * 300 + [40] * 100, shard_tokens=10**6)
    histogram = length_histogram(tmp_path, split, max_documents=100)
    assert histogram.stride == 4
    assert histogram.documents[histogram.documents > 0].tolist() == [75, 25]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    split = write_documents(tmp_path, [5, 6])
    (tmp_path / "train-00000.idx").unlink()
    with pytest.raises(UserError, match=r"train-00000\.idx: missing"):
        length_histogram(tmp_path, split)


@pytest.mark.parametrize("wrong", [0, -5])
def test_a_length_that_no_document_has_is_named(tmp_path: Path, wrong: int) -> None:
    split = write_documents(tmp_path, [5, wrong, 6 - wrong])
    with pytest.raises(UserError, match=rf"train-00000\.idx: holds a document of {wrong} tokens; run `malmoi verify"):
        length_histogram(tmp_path, split)
