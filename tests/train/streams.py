"""Token streams in memory, and their samples with the documents marked."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.shards import Shard, TokenStream
from train.documents import Batch, DocumentStarts, DocumentTokens

CPU = torch.device("cpu")
VOCABULARY = 60


def stream_of(shards: list[list[int]], seed: int = 0) -> tuple[TokenStream, NDArray[np.int64]]:
    """A stream of shards whose documents have these lengths, and where in it documents begin."""
    made, starts, before = [], [], 0
    for number, lengths in enumerate(shards):
        tokens = np.random.default_rng(seed + number).integers(4, VOCABULARY, sum(lengths)).astype("<u2")
        ends = np.cumsum(lengths)
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        made.append(Shard(Path(f"{number}"), tokens, np.array(lengths, dtype=np.int32), begins * 2))
        starts.append(begins + before)
        before += sum(lengths)
    return TokenStream(made), np.concatenate(starts)


def marked(stream: TokenStream, tokens: DocumentTokens, start: int, block: int) -> Batch:
    sample = np.empty(block + 1, dtype=np.int64)
    stream.read_into(start, sample)
    labels, begins = sample[1:].copy(), np.zeros(block, dtype=np.int64)
    DocumentStarts(stream, tokens).mark(start, labels, begins)
    return Batch(sample[None, :-1], labels[None], begins[None])


def grads(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
