"""How long the documents of a shard folder are, in memory that does not grow with it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from malmoi.data_prep.shards.indexed_dataset import open_shard
from malmoi.data_prep.shards.manifest import Split
from malmoi.errors import UserError

CHUNK = 1_000_000


@dataclass(frozen=True)
class LengthHistogram:
    """Documents by length; bin `i` holds lengths from `edges[i]` up to, not including, `edges[i + 1]`."""

    edges: NDArray[np.int64]
    documents: NDArray[np.int64]
    tokens: NDArray[np.int64]
    """Tokens of the bin's documents."""
    stride: int
    """Every `stride`-th document was counted."""


def length_edges() -> NDArray[np.int64]:
    """Return bin edges, two to a doubling, from 1 to the longest document that an index can hold."""
    octaves = np.arange(0, 2 * 31 + 1)
    return np.unique(np.ceil(2.0 ** (octaves / 2)).astype(np.int64))


def length_histogram(folder: Path, split: Split, max_documents: int = 5_000_000) -> LengthHistogram:
    """Return how many documents of a split have which length, of an even sample where there are very many.

    Raises:
        UserError: a shard is missing or broken, or holds a length that no document has.
    """
    edges = length_edges()
    documents, tokens = (np.zeros(len(edges) - 1, dtype=np.int64) for _ in range(2))
    stride = max(1, -(-split.counts.documents // max_documents))
    for stem in split.stems:
        lengths = open_shard(folder / stem).lengths[::stride]
        for start in range(0, len(lengths), CHUNK):
            chunk = np.asarray(lengths[start : start + CHUNK], dtype=np.int64)
            if chunk.min() < 1:
                raise UserError(
                    f"{folder / stem}.idx: holds a document of {chunk.min()} tokens; run `malmoi verify {folder}`"
                )
            bins = np.searchsorted(edges, chunk, side="right") - 1
            documents += np.bincount(bins, minlength=len(documents))
            np.add.at(tokens, bins, chunk)
    return LengthHistogram(edges, documents, tokens, stride)
