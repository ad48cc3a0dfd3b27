"""The loss: the negative log-likelihood of each next token."""

import torch
from torch import Tensor
from torch.nn import functional


def next_token_nats(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Sum over all positions of `-log p(target)`, in nats, as an fp32 scalar.

    Args:
        logits: `[batch, block_size, padded vocabulary]`, any float type.
        targets: `int64[batch, block_size]`, each below `vocab_size`.
        vocab_size: logits from this one on are padding and take no probability.
    """
    flat = logits[..., :vocab_size].float().flatten(0, 1)
    return functional.cross_entropy(flat, targets.flatten(), reduction="sum")


def batch_nats(model: torch.nn.Module, samples: Tensor, vocab_size: int) -> Tensor:
    """`next_token_nats` of `samples` (`int64[batch, block_size + 1]`) under `model`."""
    logits = model(input_ids=samples[:, :-1], use_cache=False).logits
    return next_token_nats(logits, samples[:, 1:], vocab_size)
