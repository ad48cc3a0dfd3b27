"""Token streams in memory, and their samples with the documents marked."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from malmoi.data_prep.shards.indexed_dataset import Shard
from malmoi.data_prep.shards.token_stream import TokenStream
from malmoi.train.data.document_mask import Batch, DocumentStarts, DocumentTokens

CPU = torch.device("cpu")
VOCABULARY = 60


def stream_of(shards: list[list[int]], seed: int = 0) -> tuple[TokenStream, NDArray[np.int64]]:
    """Return a stream of shards whose documents have these lengths, and where in it documents begin."""
    made, starts, before = [], [], 0
    for number, lengths in enumerate(shards):
        tokens = np.random.default_rng(seed + number).integers(4, VOCABULARY, sum(lengths)).astype("<u2")
        ends = np.cumsum(lengths)
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        made.append(Shard(Path(f"{number}"), tokens, np.array(lengths, dtype=np.int32), begins * 2, ()))
        starts.append(begins + before)
        before += sum(lengths)
    return TokenStream(made), np.concatenate(starts)


def marked(stream: TokenStream, tokens: DocumentTokens, start: int, block: int) -> Batch:
    """Return the sample of `block` inputs that begins at token `start`."""
    sample = np.empty(block + 1, dtype=np.int64)
    stream.read_into(start, sample)
    targets, doc_starts = sample[1:].copy(), np.zeros(block, dtype=np.int64)
    DocumentStarts(stream, tokens).mark(start, targets, doc_starts)
    return Batch(sample[None, :-1], targets[None], doc_starts[None])


def grads(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return copies of the gradients, in the parameters' order."""
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
