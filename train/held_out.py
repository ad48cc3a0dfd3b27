"""The held-out loss during training, its windows dealt out to the ranks."""

from collections.abc import Callable

import torch
from accelerate import Accelerator

from inference.score import Nats, Score, Windows, nats_of_windows, score_of
from train.backend import Backend
from train.blocks import HeldOutPart

BATCHES_BETWEEN_LOOKS = 8
"""Batches after which ranks agree whether to go on; an evaluation must not outlast a stop signal's grace."""


@torch.no_grad()
def held_out_score(
    backend: Backend,
    accelerator: Accelerator,
    held_out: HeldOutPart,
    block_size: int,
    vocab_size: int,
    batch: int,
    most_tokens: int | None,
    go_on: Callable[[], bool],
) -> Score | None:
    """Score up to `most_tokens` of the held-out part.

    Args:
        batch: windows a rank scores at once.
        go_on: asked now and then, on all ranks alike, with the same answer on all; false breaks off.

    Returns:
        The score over all ranks, the same on each; none where it was broken off.
    """
    stream = held_out.stream
    windows = Windows(len(stream), block_size, block_size)
    count = len(windows) if most_tokens is None else min(len(windows), max(1, most_tokens // block_size))
    ranks, rank = accelerator.num_processes, accelerator.process_index
    rounds = -(-count // ranks)
    own = Nats(0.0, 0)
    backend.model.eval()
    try:
        for first in range(0, rounds, batch * BATCHES_BETWEEN_LOOKS):
            if not go_on():
                return None
            last = min(rounds, first + batch * BATCHES_BETWEEN_LOOKS)
            numbers = [number * ranks + rank for number in range(first, last)]
            with backend.autocast():
                part = nats_of_windows(
                    lambda ids: backend.model(input_ids=ids, use_cache=False).logits,
                    stream,
                    windows,
                    # A rank that has run out of windows still takes part where a forward pass gathers weights.
                    [number if number < count else None for number in numbers],
                    batch,
                    vocab_size,
                    accelerator.device,
                )
            own = Nats(own.nats + part.nats, own.tokens + part.tokens)
    finally:
        backend.model.train()
    both = torch.tensor([own.nats, own.tokens], dtype=torch.float64, device=accelerator.device)
    summed = accelerator.reduce(both, "sum")
    return score_of(Nats(float(summed[0]), int(summed[1])), len(stream), held_out.counts.bytes)
