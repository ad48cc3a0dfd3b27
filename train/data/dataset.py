"""From memory-mapped shards to the token ids of a micro-batch, of one source or of a mixture."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from malmoi.data_prep.pipeline.mixture import Mixture, SourceShards
from malmoi.data_prep.shards.manifest import SplitCounts, manifest_changes, read_manifest
from malmoi.data_prep.shards.token_stream import TokenStream, open_split
from malmoi.errors import UserError
from malmoi.train.data.document_mask import Batch, DocumentStarts, DocumentTokens
from malmoi.train.data.sample_order import SampleOrder

SHOWN_CHANGES = 3


@dataclass(frozen=True)
class SourceDataset:
    """One source's training tokens and the order of its samples."""

    stream: TokenStream
    order: SampleOrder
    documents: DocumentStarts | None
    """None: a sample is read as one text."""


@dataclass(frozen=True)
class TokenDataset:
    """The training samples, by number."""

    sources: tuple[SourceDataset, ...]
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
        """Read `count` samples from number `first_sample` on."""
        samples = np.empty((count, self.block_size + 1), dtype=np.int64)
        places = list(self._places(first_sample, count))
        for row, source, start in places:
            source.stream.read_into(start, samples[row])
        if not self._has_documents:
            return Batch(samples[:, :-1], samples[:, 1:], None)
        targets, doc_starts = samples[:, 1:].copy(), np.zeros((count, self.block_size), dtype=np.int64)
        for row, source, start in places:
            if source.documents is not None:
                source.documents.mark(start, targets[row], doc_starts[row])
        return Batch(samples[:, :-1], targets, doc_starts)

    def num_target_tokens(self, first_sample: int, count: int) -> int:
        """Return the targets that have a loss in samples `first_sample` on, without reading tokens, so that every rank
        can count the whole global batch before it computes its own part."""
        masked = 0
        if self._has_documents:
            for _, source, start in self._places(first_sample, count):
                if source.documents is not None:
                    masked += source.documents.masked_targets(start, self.block_size)
        return count * self.block_size - masked

    @property
    def _has_documents(self) -> bool:
        return any(source.documents is not None for source in self.sources)

    def _places(self, first_sample: int, count: int) -> Iterator[tuple[int, SourceDataset, int]]:
        """For each of the samples: its row, its source and its first token."""
        chosen, numbers = self.mixture.locate(np.arange(first_sample, first_sample + count, dtype=np.int64))
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(chosen == number)
            for row, start in zip(rows.tolist(), source.order.starts(numbers[rows]).tolist(), strict=True):
                yield row, source, start


@dataclass(frozen=True)
class ValidationSplit:
    """The validation tokens of all sources, concatenated, and the size of their text."""

    stream: TokenStream
    counts: SplitCounts


def open_dataset(
    sources: Sequence[SourceShards], block_size: int, seed: int, documents: DocumentTokens | None = None
) -> TokenDataset:
    """Open the training split of all sources.

    Args:
        documents: mask attention between documents, which these tokens separate; None: a sample is one text.

    Raises:
        UserError: a source is shorter than one block, or its shards are damaged.
    """
    ordered = []
    for number, source in enumerate(sources):
        stream = open_split(source.folder, "train")
        order = SampleOrder(len(stream), block_size, seed + number)
        if order.samples_per_epoch == 0 and source.weight > 0:
            raise UserError(
                f"the {source.name} is shorter than one block: {len(stream)} training tokens, model.block_size "
                f"{block_size} needs {block_size + 1}; give more text or a smaller block"
            )
        ordered.append(SourceDataset(stream, order, None if documents is None else DocumentStarts(stream, documents)))
    return TokenDataset(tuple(ordered), Mixture([source.weight for source in sources]), block_size)


def open_validation(sources: Sequence[SourceShards]) -> ValidationSplit | None:
    """Open the validation split, or return None where it is empty.

    Raises:
        UserError: its shards are damaged.
    """
    counts = [read_manifest(source.folder).val.counts for source in sources]
    together = SplitCounts(
        documents=sum(count.documents for count in counts),
        tokens=sum(count.tokens for count in counts),
        bytes=sum(count.bytes for count in counts),
        characters=sum(count.characters for count in counts),
    )
    if together.tokens < 2:
        return None
    streams = [open_split(source.folder, "val") for source in sources]
    return ValidationSplit(TokenStream([shard for stream in streams for shard in stream.shards]), together)


def data_fingerprint(sources: Sequence[SourceShards]) -> str:
    """What the order of samples depends on besides seed and settings: the shards, and of several their weights."""
    return _fingerprint([read_manifest(source.folder).fingerprint for source in sources], sources)


def _fingerprint(shards: Sequence[str], sources: Sequence[SourceShards]) -> str:
    """Return the fingerprint of `sources` whose shards have the fingerprints `shards`."""
    if len(sources) == 1:
        return shards[0]
    parts = [(name, source.weight) for name, source in zip(shards, sources, strict=True)]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def data_changes(sources: Sequence[SourceShards], before: str) -> str:
    """Return how the data differ from those whose `data_fingerprint` was `before`, in words.

    Empty where they do not differ, or where that is not known: the shards before are gone, or several sources changed.
    """
    shards = [source.folder.name for source in sources]
    if _fingerprint(shards, sources) == before:
        return ""
    for number, source in enumerate(sources):
        for folder in sorted(source.folder.parent.iterdir()):
            if _fingerprint([*shards[:number], folder.name, *shards[number + 1 :]], sources) == before:
                return _changes_from(folder, source)
    return ""


def _changes_from(folder: Path, source: SourceShards) -> str:
    try:
        changes = manifest_changes(read_manifest(folder), read_manifest(source.folder))
    except UserError:
        return ""  # Damaged: what it was made of is not known.
    more = f" and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
    return f"{source.name}: {', '.join(changes[:SHOWN_CHANGES])}{more}"
