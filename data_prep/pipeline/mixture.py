"""Several sources: the shards of each, and which source each sample of training comes from.

Weights decide nothing on disk. They decide a schedule of at most `SLOTS` samples, repeated for ever, in which every
source has its share. So which source a sample comes from, and which of that source's samples it is, is arithmetic.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import ShardSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.errors import UserError

SLOTS = 65_536
ROUND_UP = 1.01
"""Makes of a number one that three digits never show as less."""


@dataclass(frozen=True)
class SourceShards:
    """One source, prepared."""

    name: str
    weight: float
    folder: Path


def prepare_sources(
    corpus: CorpusSettings, data: ShardSettings, tokenizer_folder: Path, out: Path, plugins: tuple[str, ...] = ()
) -> tuple[SourceShards, ...]:
    """Return the shards of each source, built unless they are there; a corpus without sources is one, called `corpus`.

    Args:
        plugins: see `prepare_shards`.

    Raises:
        UserError: see `prepare_shards`; or two sources have the same name, or the weights cannot be shared out.
    """
    sources = corpus.sources
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"corpus.sources: two are called the same ({', '.join(names)}); give each its own name")
    if not sources:
        return (SourceShards("corpus", 1.0, prepare_shards(corpus, data, tokenizer_folder, out, plugins)),)
    check_weights([source.weight for source in sources])
    return tuple(
        SourceShards(
            source.name,
            source.weight,
            prepare_shards(replace(corpus, input=source.input, sources=()), data, tokenizer_folder, out, plugins),
        )
        for source in sources
    )


def check_weights(weights: Sequence[float]) -> None:
    """Check that every source with a weight gets samples.

    Args:
        weights: finite, 0 or more.

    Raises:
        UserError: no weight is above 0, or one is too small beside the others.
    """
    if not sum(weights) > 0:
        raise UserError(f"corpus.sources: of the weights {list(weights)} none is above 0; set one")
    for weight, count in zip(weights, slot_counts(weights).tolist(), strict=True):
        if weight and not count:
            least = ROUND_UP * (sum(weights) - weight) / (SLOTS - 1)
            raise UserError(
                f"corpus.sources: weight {weight:g} is so small beside a sum of {sum(weights):g} that no sample of its "
                f"source would come; set it to {least:.3g} or more, or to 0"
            )


def slot_counts(weights: Sequence[float]) -> NDArray[np.int64]:
    """Return how many slots of the schedule each source has: the weights exactly, as the decimals that they are written
    as, where a schedule of at most `SLOTS` allows it, else to within one of `SLOTS` slots."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    length = math.lcm(*(share.denominator for share in shares))
    if length <= SLOTS:
        return np.array([int(share * length) for share in shares], dtype=np.int64)
    counts = [math.floor(share * SLOTS) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda source: counts[source] - shares[source] * SLOTS)
    for source in by_remainder[: SLOTS - sum(counts)]:
        counts[source] += 1
    return np.array(counts, dtype=np.int64)


def fair_slots(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a source for each slot, so that in every prefix each source has its share to within less than one sample.

    Tijdeman, "The chairman assignment problem" (1980): with n sources and d = 1 / (2n - 2), sample k of a source of
    share s may come from slot (k + d) / s on and must have come by slot (k + 1 - d) / s. The one that is due first
    goes first, and none is ever late.
    """
    length = int(counts.sum())
    present = np.flatnonzero(counts)
    if len(present) == 1:
        return np.full(length, present[0], dtype=np.int64)
    parts = 2 * len(present) - 2
    jobs = []
    for source in present.tolist():
        count = int(counts[source])
        for number in range(count):
            earliest = -(-(number * parts + 1) * length // (parts * count))
            latest = ((number + 1) * parts - 1) * length // (parts * count)
            jobs.append((earliest, latest, source))
    jobs.sort(reverse=True)
    slots = np.empty(length, dtype=np.int64)
    waiting: list[tuple[int, int]] = []
    for slot in range(1, length + 1):
        while jobs and jobs[-1][0] <= slot:
            heapq.heappush(waiting, jobs.pop()[1:])
        slots[slot - 1] = heapq.heappop(waiting)[1]
    return slots


class Mixture:
    """Which source each sample comes from."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Compute the schedule of `weights`.

        Raises:
            UserError: the weights cannot be shared out.
        """
        check_weights(weights)
        self._counts = slot_counts(weights)
        self._slots = fair_slots(self._counts)
        self._ranks = np.zeros(len(self._slots), dtype=np.int64)
        for source in range(len(self._counts)):
            of_source = self._slots == source
            self._ranks[of_source] = np.arange(int(of_source.sum()))

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each sample and its number among that source's samples.

        A source's numbers run on without a gap, so the caller's order of its blocks, epoch after epoch, applies to
        them as to a corpus of one source.

        Args:
            samples: int64, any shape, 0 or more.

        Returns:
            Two int64 arrays of the same shape.
        """
        rounds, slots = np.divmod(samples, len(self._slots))
        sources = self._slots[slots]
        return sources, rounds * self._counts[sources] + self._ranks[slots]
