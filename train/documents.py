"""Where documents begin inside a sample, from the shards' index: no text can forge it."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from configs.errors import BadInput
from data_prep.shards import TokenStream

DocumentTokens = Literal["two", "one"]
"""How a document is set off in the shards: between `<s>` and `</s>`, or by the one token that stands for both."""
QUARTERS = 4
"""What a sample is cut into while samples are short."""
NOT_COUNTED = -100
"""The label of a token that nothing is learnt from, as torch's and transformers' losses have it."""


@dataclass(frozen=True)
class Batch:
    """Some samples as the model reads them, on the host."""

    inputs: NDArray[np.int64]
    """`[samples, block_size]`."""
    labels: NDArray[np.int64]
    """`[samples, block_size]`: the token after each input, or `NOT_COUNTED`."""
    begins: NDArray[np.int64] | None
    """`[samples, block_size]`: the place in the sample at which each input's document begins, and 0 where that lies
    before the sample. None: a sample is read as one text."""

    @property
    def targets(self) -> int:
        """Labels that count."""
        return int((self.labels != NOT_COUNTED).sum())


def in_quarters(batch: Batch) -> Batch:
    """Each sample of `batch` as four of a quarter of its length, every target as before but with less context."""

    def cut(part: NDArray[np.int64]) -> NDArray[np.int64]:
        return part.reshape(QUARTERS * len(part), -1)

    begins = None
    if batch.begins is not None:
        quarter = batch.begins.shape[1] // QUARTERS
        before = np.arange(QUARTERS * quarter) // quarter * quarter
        begins = cut(np.maximum(batch.begins - before, 0))
    return Batch(cut(batch.inputs), cut(batch.labels), begins)


def check_document_tokens(stream: TokenStream, bos: int, eos: int) -> None:
    """See that documents stand in the shards between the tokens that the tokenizer's configuration names.

    Raises:
        BadInput: the configuration names others, so a prompt would begin with a token that was never trained.
    """
    if not len(stream):
        return
    document = stream.shards[0].document(0)
    first, last = int(document[0]), int(document[-1])
    if last != eos or (bos != eos and first != bos):
        raise BadInput(
            f"the shards hold documents that begin with token {first} and end with {last}, and the tokenizer's "
            f"configuration names {bos} and {eos}; set bos_token and eos_token in its tokenizer_config.json"
        )


class DocumentStarts:
    """The documents of a token stream.

    A document stands between `<s>` and `</s>`. Alone, it predicts nothing after its end, so neither does it among
    others: the label `</s>` -> `<s>` of the next document does not count. Where one token both begins and ends a
    text, as GPT-2's, the shards hold it after each document only. It is then the last label of one document and the
    first input of the next, which is how `malmoi generate` begins a text, and every label counts.
    """

    def __init__(self, stream: TokenStream, tokens: DocumentTokens) -> None:
        self._shards = stream.shards
        self._first_tokens = np.cumsum([0, *(len(shard.tokens) for shard in stream.shards)], dtype=np.int64)
        self._tokens = tokens

    def masked_targets(self, start: int, block_size: int) -> int:
        """How many labels do not count in the sample that begins at token `start`; reads the index alone."""
        if self._tokens == "one":
            return 0
        return sum(high - low for _, low, high in self._slices(start + 1, start + block_size + 1))

    def mark(self, start: int, labels: NDArray[np.int64], begins: NDArray[np.int64]) -> None:
        """Mark the documents in the sample that begins at token `start`.

        Args:
            labels: `[block_size]`, set to `NOT_COUNTED` in place where a label does not count.
            begins: `[block_size]` of zeros, filled in as `Batch.begins`.
        """
        block_size = len(labels)
        starts = self._between(start + 1, start + block_size + 1) - start
        if self._tokens == "one":
            first_inputs = starts[starts > 1] - 1
        else:
            labels[starts - 1] = NOT_COUNTED
            first_inputs = starts[starts < block_size]
        begins[first_inputs] = first_inputs
        np.maximum.accumulate(begins, out=begins)

    def _between(self, first: int, stop: int) -> NDArray[np.int64]:
        """Tokens of the stream from `first` up to `stop` at which a document begins, in order."""
        pieces = [
            self._shards[number].offsets[low:high] // self._shards[number].tokens.itemsize + self._first_tokens[number]
            for number, low, high in self._slices(first, stop)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def _slices(self, first: int, stop: int) -> list[tuple[int, int, int]]:
        """For each shard between two tokens: its number and the slice of its documents that begin there.

        `bisect`, because `np.searchsorted` would copy the whole index: it lies unaligned in its file.
        """
        slices = []
        number = int(np.searchsorted(self._first_tokens, first, side="right")) - 1
        while number < len(self._shards) and self._first_tokens[number] < stop:
            shard, before = self._shards[number], int(self._first_tokens[number])
            size = shard.tokens.itemsize
            low, high = (bisect_left(shard.offsets, (token - before) * size) for token in (first, stop))
            slices.append((number, low, high))
            number += 1
        return slices
