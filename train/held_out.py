"""The held-out loss during training, its windows dealt out to the ranks."""

from collections.abc import Callable

import torch
from accelerate import Accelerator

from inference.score import Nats, Score, Windows, nats_of_windows, score_of
from train.backend import Backend
from train.blocks import HeldOutPart
from train.memory import loss_positions

BATCHES_BETWEEN_LOOKS = 8
"""Batches after which ranks agree whether to go on; an evaluation must not outlast a stop signal's grace."""
LOGIT_COPIES = 2
"""How many times as many bytes a plain loss holds for a logit as training's, which works in place."""


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
        batch: most windows that a rank scores at once; fewer where their logits would take more than a chunk of
            training's loss.
        go_on: asked now and then, on all ranks alike, with the same answer on all; false breaks off.

    Returns:
        The score over all ranks, the same on each; none where it was broken off.
    """
    # Its logits are whole, where training's are made a chunk at a time.
    batch = min(batch, max(1, loss_positions(vocab_size, accelerator.device.type) // LOGIT_COPIES // block_size))
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
