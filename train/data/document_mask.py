"""Where documents begin inside a sample, from the shards' index: no text can forge it."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from malmoi.data_prep.shards.token_stream import TokenStream
from malmoi.errors import UserError
from malmoi.train.models.spec import IGNORE_INDEX

DocumentTokens = Literal["two", "one"]
"""How a document is set off in the shards: between `<s>` and `</s>`, or by the one token that stands for both."""
QUARTERS = 4
"""Parts that a sample is cut into during the sequence length warmup."""


@dataclass(frozen=True)
class Batch:
    """Some samples as the model reads them, on the host."""

    inputs: NDArray[np.int64]
    """`[samples, block_size]`."""
    targets: NDArray[np.int64]
    """`[samples, block_size]`: the token after each input, or `IGNORE_INDEX`."""
    doc_starts: NDArray[np.int64] | None
    """`[samples, block_size]`: the place in the sample at which each input's document begins, and 0 where that is
    before the sample. None: a sample is read as one text."""

    @property
    def num_target_tokens(self) -> int:
        """Targets that have a loss."""
        return int((self.targets != IGNORE_INDEX).sum())


def cut_in_quarters(batch: Batch) -> Batch:
    """Each sample of `batch` as four of a quarter of its length, with the same targets but less context."""

    def cut(part: NDArray[np.int64]) -> NDArray[np.int64]:
        return part.reshape(QUARTERS * len(part), -1)

    doc_starts = None
    if batch.doc_starts is not None:
        quarter = batch.doc_starts.shape[1] // QUARTERS
        before = np.arange(QUARTERS * quarter) // quarter * quarter
        doc_starts = cut(np.maximum(batch.doc_starts - before, 0))
    return Batch(cut(batch.inputs), cut(batch.targets), doc_starts)


def check_document_tokens(stream: TokenStream, bos: int, eos: int) -> None:
    """Check that documents in the shards begin and end with the tokens that the tokenizer's configuration names.

    Raises:
        UserError: the configuration names others, so a prompt would begin with a token that was never trained.
    """
    if not len(stream):
        return
    document = stream.shards[0].document(0)
    first, last = int(document[0]), int(document[-1])
    if last != eos or (bos != eos and first != bos):
        raise UserError(
            f"the shards hold documents that begin with token {first} and end with {last}, and the tokenizer's "
            f"configuration names {bos} and {eos}; set bos_token and eos_token in its tokenizer_config.json"
        )


class DocumentStarts:
    """The documents of a token stream.

    A document is between `<s>` and `</s>`. Alone, it predicts nothing after its end, so neither does it among others:
    the target `</s>` -> `<s>` of the next document has no loss. Where one token both begins and ends a
    text, as GPT-2's, the shards hold it after each document only. It is then the last target of one document and the
    first input of the next, which is how `malmoi generate` begins a text, and every target has a loss.
    """

    def __init__(self, stream: TokenStream, tokens: DocumentTokens) -> None:
        self._shards = stream.shards
        self._first_tokens = np.cumsum([0, *(len(shard.tokens) for shard in stream.shards)], dtype=np.int64)
        self._tokens = tokens

    def masked_targets(self, start: int, block_size: int) -> int:
        """How many targets do not count in the sample that begins at token `start`; reads the index alone."""
        if self._tokens == "one":
            return 0
        return sum(high - low for _, low, high in self._slices(start + 1, start + block_size + 1))

    def mark(self, start: int, targets: NDArray[np.int64], doc_starts: NDArray[np.int64]) -> None:
        """Mark the documents in the sample that begins at token `start`.

        Args:
            targets: `[block_size]`, set to `IGNORE_INDEX` in place where a target has no loss.
            doc_starts: `[block_size]` of zeros, filled in as `Batch.doc_starts`.
        """
        block_size = len(targets)
        starts = self._between(start + 1, start + block_size + 1) - start
        if self._tokens == "one":
            first_inputs = starts[starts > 1] - 1
        else:
            targets[starts - 1] = IGNORE_INDEX
            first_inputs = starts[starts < block_size]
        doc_starts[first_inputs] = first_inputs
        np.maximum.accumulate(doc_starts, out=doc_starts)

    def _between(self, first: int, stop: int) -> NDArray[np.int64]:
        """Tokens of the stream from `first` up to `stop` at which a document begins, in order."""
        pieces = [
            self._shards[number].offsets[low:high] // self._shards[number].tokens.itemsize + self._first_tokens[number]
            for number, low, high in self._slices(first, stop)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def _slices(self, first: int, stop: int) -> list[tuple[int, int, int]]:
        """For each shard between two tokens: its number and the slice of its documents that begin there.

        `bisect`, because `np.searchsorted` would copy the whole index: it is not aligned in its file.
        """
        slices = []
        number = int(np.searchsorted(self._first_tokens, first, side="right")) - 1
        while number < len(self._shards) and self._first_tokens[number] < stop:
            shard, before = self._shards[number], int(self._first_tokens[number])
            shard.require_complete()
            size = shard.tokens.itemsize
            low, high = (bisect_left(shard.offsets, (token - before) * size) for token in (first, stop))
            slices.append((number, low, high))
            number += 1
        return slices
