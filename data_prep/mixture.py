"""Several sources: the shards of each, and which source each sample of training comes from.

Weights decide nothing on disk. They decide a schedule of `SLOTS` samples, repeated for ever, in which every source
has its share; so which source a sample comes from, and which of that source's samples it is, is arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import BadInput
from configs.schema import CorpusSettings, DataSettings
from data_prep.build import prepare_shards

SLOTS = 65_536


@dataclass(frozen=True)
class SourceShards:
    """One source, prepared."""

    name: str
    weight: float
    folder: Path


def prepare_sources(
    corpus: CorpusSettings, data: DataSettings, tokenizer_folder: Path, out: Path
) -> tuple[SourceShards, ...]:
    """The shards of each source, built unless they are there; a corpus without sources is one, called `corpus`.

    Raises:
        BadInput: see `prepare_shards`; or a source is named twice, or has a weight below 0, or all have 0.
    """
    sources = corpus.sources
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise BadInput(f"corpus.sources: two are called the same ({', '.join(names)}); give each its own name")
    if not sources:
        return (SourceShards("corpus", 1.0, prepare_shards(corpus, data, tokenizer_folder, out)),)
    check_weights([source.weight for source in sources])
    return tuple(
        SourceShards(
            source.name,
            source.weight,
            prepare_shards(replace(corpus, input=source.input, sources=()), data, tokenizer_folder, out),
        )
        for source in sources
    )


def check_weights(weights: Sequence[float]) -> None:
    """See that weights can be shared out.

    Raises:
        BadInput: they cannot.
    """
    if not all(weight >= 0 and np.isfinite(weight) for weight in weights) or not sum(weights) > 0:
        raise BadInput(f"corpus.sources: weights {list(weights)} must be 0 or more, and one above 0")


class Mixture:
    """Which source each sample comes from."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        """Share `SLOTS` slots out by the weights, to within one slot each, and shuffle them by `seed`."""
        check_weights(weights)
        exact = np.array(weights, dtype=np.float64) / sum(weights) * SLOTS
        counts = np.floor(exact).astype(np.int64)
        for source in np.argsort(-(exact - counts), kind="stable")[: SLOTS - int(counts.sum())]:
            counts[source] += 1
        self._counts = counts
        slots = np.repeat(np.arange(len(counts)), counts)
        # A generator whose stream NumPy promises to keep.
        self._slots = slots[np.argsort(np.random.RandomState(seed % 2**32).random_sample(SLOTS), kind="stable")]
        self._ranks = np.zeros(SLOTS, dtype=np.int64)
        for source in range(len(counts)):
            of_source = self._slots == source
            self._ranks[of_source] = np.arange(int(of_source.sum()))

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each sample and its number among that source's samples.

        A source's numbers run on without a gap, so the caller's order of its blocks, epoch after epoch, applies to
        them as to a corpus of one source.

        Args:
            samples: int64, any shape, 0 or more.

        Returns:
            Two int64 arrays of the same shape.
        """
        rounds, slots = np.divmod(samples, SLOTS)
        sources = self._slots[slots]
        return sources, rounds * self._counts[sources] + self._ranks[slots]
