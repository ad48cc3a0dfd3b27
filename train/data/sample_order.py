"""The order of samples: a pure function of (seed, epoch, index), in exact integers and O(1) memory.

Each epoch is a Feistel network over the smallest power of four that holds the samples; values outside are
walked along their cycle until they fall inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
2002). A Feistel network is a bijection whatever its round function, so each epoch visits each block once.
"""

import math
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from malmoi.configs.train import TrainSettings

ROUNDS = 6


def _seeded_integer(*parts: int | str) -> int:
    """64 uniform bits that depend on `parts` alone."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014); arithmetic modulo 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(indices: NDArray[np.uint64], count: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Where the epoch's permutation of `range(count)` sends each of `indices`.

    Args:
        indices: 1-D, each below `count`.
        count: 1 to 2^62.
    """
    half_bits = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    keys = [np.uint64(_seeded_integer("order", seed, epoch, number)) for number in range(ROUNDS)]
    values = indices.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half_bits, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        values[outside] = (left << half_bits) | right
        outside = values >= np.uint64(count)
    return values


@dataclass(frozen=True)
class SampleOrder:
    """The place of each sample of an endless training run in the token stream.

    Sample `k` belongs to epoch `k // samples_per_epoch`. Blocks begin at a phase that changes each epoch, so
    that block borders move and the tail that is left over is not always the same.
    """

    stream_tokens: int
    block_size: int
    """Tokens a sample predicts; it reads one more."""
    seed: int

    @property
    def samples_per_epoch(self) -> int:
        """Blocks in one pass; 0 where the stream is shorter than a block and its next token."""
        if self.stream_tokens <= self.block_size:
            return 0
        return max(1, (self.stream_tokens - self.block_size) // self.block_size)

    def phase(self, epoch: int) -> int:
        """Tokens left out before the first block of `epoch`."""
        slack = self.stream_tokens - 1 - self.samples_per_epoch * self.block_size
        return _seeded_integer("phase", self.seed, epoch) % (min(slack, self.block_size - 1) + 1)

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """First token of each of `samples`, as `int64` of the same 1-D shape."""
        starts = np.empty(len(samples), dtype=np.int64)
        epochs, indices = np.divmod(samples, self.samples_per_epoch)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            blocks = permuted(indices[chosen].astype(np.uint64), self.samples_per_epoch, self.seed, epoch)
            starts[chosen] = self.phase(epoch) + blocks.astype(np.int64) * self.block_size
        return starts


def planned_steps(settings: TrainSettings, samples_per_epoch: int) -> int:
    """Return the optimizer steps of a run: `max_steps`, or as many as `epochs` gives, and at least one."""
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, math.ceil(settings.epochs * samples_per_epoch / settings.global_batch_size))
