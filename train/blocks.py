"""From memory-mapped shards to the token ids of a micro-batch, of one source or of a mixture."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import BadInput
from data_prep.build import open_split
from data_prep.manifest import SplitCounts, read_manifest
from data_prep.mixture import Mixture, SourceShards
from data_prep.shards import TokenStream
from train.documents import Batch, DocumentStarts, DocumentTokens
from train.order import SampleOrder


@dataclass(frozen=True)
class OrderedSource:
    """One source's training tokens and the order of its samples."""

    stream: TokenStream
    order: SampleOrder
    documents: DocumentStarts | None
    """None: a sample is read as one text."""


@dataclass(frozen=True)
class SampleReader:
    """Reads samples by number."""

    sources: tuple[OrderedSource, ...]
    mixture: Mixture
    block_size: int

    @property
    def tokens(self) -> int:
        """Training tokens of all sources."""
        return sum(len(source.stream) for source in self.sources)

    @property
    def samples_per_epoch(self) -> int:
        """Samples as many as all sources hold blocks; with weights, some repeat sooner and others later."""
        return sum(source.order.samples_per_epoch for source in self.sources)

    def read(self, first_sample: int, count: int) -> Batch:
        """Samples `first_sample` on."""
        samples = np.empty((count, self.block_size + 1), dtype=np.int64)
        places = list(self._places(first_sample, count))
        for row, source, start in places:
            source.stream.read_into(start, samples[row])
        if not self._has_documents:
            return Batch(samples[:, :-1], samples[:, 1:], None)
        labels, begins = samples[:, 1:].copy(), np.zeros((count, self.block_size), dtype=np.int64)
        for row, source, start in places:
            if source.documents is not None:
                source.documents.mark(start, labels[row], begins[row])
        return Batch(samples[:, :-1], labels, begins)

    def targets(self, first_sample: int, count: int) -> int:
        """Labels that count in samples `first_sample` on; reads no token, so that every rank can ask for all samples
        of an update before it computes its own."""
        masked = 0
        if self._has_documents:
            for _, source, start in self._places(first_sample, count):
                if source.documents is not None:
                    masked += source.documents.masked_targets(start, self.block_size)
        return count * self.block_size - masked

    @property
    def _has_documents(self) -> bool:
        return any(source.documents is not None for source in self.sources)

    def _places(self, first_sample: int, count: int) -> Iterator[tuple[int, OrderedSource, int]]:
        """For each of the samples: its row, its source and its first token."""
        chosen, numbers = self.mixture.locate(np.arange(first_sample, first_sample + count, dtype=np.int64))
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(chosen == number)
            for row, start in zip(rows.tolist(), source.order.starts(numbers[rows]).tolist(), strict=True):
                yield row, source, start


@dataclass(frozen=True)
class HeldOutPart:
    """The held-out tokens of all sources, end to end, and the text behind them."""

    stream: TokenStream
    counts: SplitCounts


def open_samples(
    sources: Sequence[SourceShards], block_size: int, seed: int, documents: DocumentTokens | None = None
) -> SampleReader:
    """A reader over the training part of all sources.

    Args:
        documents: keep the documents of a sample apart, which these tokens set off; none: a sample is one text.

    Raises:
        BadInput: a source is shorter than one block, or its shards are not whole.
    """
    ordered = []
    for number, source in enumerate(sources):
        stream = open_split(source.folder, "train")
        order = SampleOrder(len(stream), block_size, seed + number)
        if order.samples_per_epoch == 0 and source.weight > 0:
            raise BadInput(
                f"the {source.name} is shorter than one block: {len(stream)} training tokens, model.block_size "
                f"{block_size} needs {block_size + 1}; give more text or a smaller block"
            )
        ordered.append(OrderedSource(stream, order, None if documents is None else DocumentStarts(stream, documents)))
    return SampleReader(tuple(ordered), Mixture([source.weight for source in sources]), block_size)


def open_held_out(sources: Sequence[SourceShards]) -> HeldOutPart | None:
    """The held-out part, or none where no document is held out.

    Raises:
        BadInput: its shards are not whole.
    """
    counts = [read_manifest(source.folder).held_out.counts for source in sources]
    together = SplitCounts(
        documents=sum(count.documents for count in counts),
        tokens=sum(count.tokens for count in counts),
        bytes=sum(count.bytes for count in counts),
        characters=sum(count.characters for count in counts),
    )
    if together.tokens < 2:
        return None
    streams = [open_split(source.folder, "held_out") for source in sources]
    return HeldOutPart(TokenStream([shard for stream in streams for shard in stream.shards]), together)


def data_fingerprint(sources: Sequence[SourceShards]) -> str:
    """What the order of samples depends on besides seed and settings: the shards, and of several their weights."""
    fingerprints = [read_manifest(source.folder).fingerprint for source in sources]
    if len(sources) == 1:
        return fingerprints[0]
    parts = [(name, source.weight) for name, source in zip(fingerprints, sources, strict=True)]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
