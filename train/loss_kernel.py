"""The loss of a chunk of logits as one kernel of Triton: `train.chunked_loss.loss_in_place` for a GPU.

A program goes over its row of logits twice: once for the row's largest and the sum of exponentials, together (Milakov
and Gimelshein, "Online normalizer calculation for softmax", 2018), and once to put the gradient in the logits' place.
So few programs run at once that much of a row is still in the GPU's cache the second time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from train.documents import NOT_COUNTED

COLUMNS, WARPS = 4096, 16
"""Logits that a program reads at once, and its warps: of seven pairs the fastest on an H100, where 5,312 rows of 50,304
logits in 16 bits take 0.67 ms, others 0.71 to 1.05."""


def loss_in_kernel(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """A `LossOfChunk` that overwrites `logits`, each row of which is contiguous, by their gradient."""
    nats = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _loss_kernel[(len(logits),)](
        logits,
        targets,
        nats,
        logits.stride(0),
        VOCABULARY=vocab_size,
        PADDED=logits.shape[1],
        NOT_COUNTED=NOT_COUNTED,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
    )
    return nats.sum(), logits


@triton.jit  # type: ignore[untyped-decorator]  # Triton is untyped
def _loss_kernel(  # type: ignore[no-untyped-def]
    logits,
    targets,
    nats,
    stride,
    VOCABULARY: tl.constexpr,
    PADDED: tl.constexpr,
    NOT_COUNTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    counted = target != NOT_COUNTED
    answer = tl.load(logits + tl.where(counted, target, 0)).to(tl.float32)
    # Each lane has a maximum and a sum of its own until all columns are read.
    largest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, VOCABULARY, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        logit = tl.load(logits + columns, mask=columns < VOCABULARY, other=float("-inf")).to(tl.float32)
        above = tl.maximum(largest, logit)
        # A lane that has read nothing yet, or only what is infinitely unlikely, must not subtract infinities.
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(largest - base) + tl.exp(logit - base)
        largest = above
    maximum = tl.max(largest, 0)
    base = tl.where(maximum == float("-inf"), 0.0, maximum)
    normalizer = tl.sum(total * tl.exp(largest - base), 0)
    tl.store(nats + row, tl.where(counted, base + tl.log(normalizer) - answer, 0.0))
    for first in range(0, PADDED, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        logit = tl.load(logits + columns, mask=columns < VOCABULARY, other=float("-inf")).to(tl.float32)
        probability = tl.exp(logit - base) / normalizer
        gradient = tl.where(counted, probability - tl.where(columns == target, 1.0, 0.0), 0.0)
        tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=columns < PADDED)
