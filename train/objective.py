"""The loss: the negative log-likelihood of each next token."""

import torch
from torch import Tensor
from torch.nn import functional

from configs.schema import Attention
from train.attention import document_mask
from train.documents import NOT_COUNTED, Batch
from train.transfer import on_device


def next_token_nats(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Sum over all counted positions of `-log p(target)`, in nats, as an fp32 scalar: the plain form of what a model
    in training computes by `train.chunked_loss`.

    Args:
        logits: `[batch, block_size, padded vocabulary]`, any float type.
        targets: `int64[batch, block_size]`, each below `vocab_size`, or `NOT_COUNTED`.
        vocab_size: logits from this one on are padding and take no probability.
    """
    flat = logits[..., :vocab_size].float().flatten(0, 1)
    return functional.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=NOT_COUNTED)


def batch_nats(
    model: torch.nn.Module, batch: Batch, vocab_size: int, device: torch.device, attention: Attention
) -> Tensor:
    """`next_token_nats` of `batch` under a `TrainedGPT2`, wrapped for its ranks or not.

    Args:
        attention: what the model computes attention with, which decides the form of a mask.
    """
    inputs, labels = on_device(batch.inputs, device), on_device(batch.labels, device)
    documents = {}
    if batch.begins is not None:
        begins = on_device(batch.begins, device)
        documents = {"positions": positions(begins), "attention_mask": document_mask(begins, attention)}
    nats: Tensor = model(inputs, labels, vocab_size, **documents)
    return nats


def positions(begins: Tensor) -> Tensor:
    """Each input's place in its own document, from `Batch.begins`, as `int64` of the same shape."""
    return torch.arange(begins.shape[1], device=begins.device) - begins
