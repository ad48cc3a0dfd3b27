"""The validation loss during training, its windows distributed over the ranks."""

from collections.abc import Callable

import torch

from malmoi.evaluation.perplexity import LossSum, PerplexityResult, Windows, perplexity_result, sum_window_losses
from malmoi.train.backends import Backend
from malmoi.train.data.dataset import ValidationSplit
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.models.cross_entropy import chunk_positions

BATCHES_BETWEEN_CHECKS = 8
"""Batches after which ranks agree whether to keep going; an evaluation must not outlast a stop signal's grace."""
LOGIT_COPIES = 2
"""How many times as many bytes a plain loss holds for a logit as training's, which works in place."""


@torch.no_grad()
def validation_perplexity(
    backend: Backend,
    env: DistEnv,
    split: ValidationSplit,
    block_size: int,
    vocab_size: int,
    batch_size: int,
    max_tokens: int | None,
    keep_going: Callable[[], bool],
) -> PerplexityResult | None:
    """Evaluate up to `max_tokens` of the validation split.

    Args:
        batch_size: windows that a rank evaluates at once at most; fewer where their logits would take more memory than
            a chunk of training's loss.
        keep_going: called now and then, on all ranks alike, with the same answer on all; false stops.

    Returns:
        The result over all ranks, the same on each; None where it was stopped.
    """
    # It holds all logits, where training makes them a chunk at a time.
    fitting = chunk_positions(vocab_size, env.device.type) // LOGIT_COPIES // block_size
    batch_size = min(batch_size, max(1, fitting))
    stream = split.stream
    windows = Windows(len(stream), block_size, block_size)
    count = len(windows) if max_tokens is None else min(len(windows), max(1, max_tokens // block_size))
    ranks, rank = env.dims.dp_size, env.dims.dp_rank
    rounds = -(-count // ranks)
    loss_sum, num_tokens = 0.0, 0
    backend.model.eval()
    try:
        for first in range(0, rounds, batch_size * BATCHES_BETWEEN_CHECKS):
            if not keep_going():
                return None
            last = min(rounds, first + batch_size * BATCHES_BETWEEN_CHECKS)
            indices = [index * ranks + rank for index in range(first, last)]
            with backend.autocast():
                part = sum_window_losses(
                    lambda ids: backend.model(input_ids=ids, use_cache=False).logits,
                    stream,
                    windows,
                    # A rank that has run out of windows still takes part where a forward pass gathers weights.
                    [index if index < count else None for index in indices],
                    batch_size,
                    vocab_size,
                    env.device,
                )
            loss_sum, num_tokens = loss_sum + part.loss_sum, num_tokens + part.num_tokens
    finally:
        backend.model.train()
    both = torch.tensor([loss_sum, num_tokens], dtype=torch.float64, device=env.device)
    total = env.accelerator.reduce(both, "sum")
    return perplexity_result(LossSum(float(total[0]), int(total[1])), len(stream), split.counts.bytes)
