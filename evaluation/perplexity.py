"""Loss, perplexity and bits per byte of a model over a stream of tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Logits = Callable[[Tensor], Tensor]
"""From int64[batch, tokens] to float[batch, tokens, vocabulary]."""


class Tokens(Protocol):
    """Anything with a length and `read_into`, such as a `TokenStream`."""

    def __len__(self) -> int: ...

    def read_into(self, start: int, out: NDArray[np.int64]) -> None: ...


@dataclass(frozen=True)
class LossSum:
    """A summed negative log-likelihood."""

    loss_sum: float
    """In nats."""
    num_tokens: int
    """Predicted tokens that it is the sum over."""


@dataclass(frozen=True)
class PerplexityResult:
    """How well a model predicts a text."""

    loss: float
    """Mean negative log-likelihood, in nats a token."""
    perplexity: float
    bits_per_byte: float
    """Over the UTF-8 bytes of the text, so that models with different tokenizers compare."""
    tokens: int
    """Predicted tokens: all but the first of the stream."""
    bytes: int
    """Bytes of text that they stand for."""

    def as_dict(self) -> dict[str, float | int]:
        """Return the fields, for JSON."""
        return asdict(self)


def perplexity_result(measured: LossSum, stream_tokens: int, text_bytes: int) -> PerplexityResult:
    """Return the result for a stream of `stream_tokens` tokens made from `text_bytes` bytes of text.

    Args:
        measured: over the stream or a part of it; a part counts for its share of the bytes, by tokens.
    """
    loss = measured.loss_sum / measured.num_tokens
    part_bytes = text_bytes * measured.num_tokens / (stream_tokens - 1)
    return PerplexityResult(
        loss=loss,
        perplexity=perplexity_from_loss(loss),
        bits_per_byte=measured.loss_sum / math.log(2) / part_bytes if part_bytes else math.inf,
        tokens=measured.num_tokens,
        bytes=round(part_bytes),
    )


def perplexity_from_loss(loss: float) -> float:
    """Return exp of a loss in nats a token; infinity where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def format_perplexity(perplexity: float) -> str:
    """Return a perplexity with one decimal, or with three digits from 1e9 on, where a model has diverged."""
    return f"{perplexity:,.1f}" if perplexity < 1e9 else f"{perplexity:.3g}"


@dataclass(frozen=True)
class Windows:
    """How a stream is cut: windows of `block_size` target tokens that start `stride` tokens apart.

    Each target is counted once, in the first window that reaches it, so that with a stride below `block_size` every
    target but the first few has at least `block_size - stride` tokens of context.
    """

    stream_tokens: int
    block_size: int
    stride: int

    def __len__(self) -> int:
        targets = self.stream_tokens - 1
        return max(0, 1 + -(-max(0, targets - self.block_size) // self.stride)) if targets > 0 else 0

    def span(self, index: int) -> tuple[int, int, int]:
        """Return a window's first token, its tokens, and how many targets at its end are counted."""
        start = index * self.stride
        targets = min(self.block_size, self.stream_tokens - 1 - start)
        counted = targets if index == 0 else start + targets - ((index - 1) * self.stride + self.block_size)
        return start, targets + 1, counted


def sum_window_losses(
    logits_of: Logits,
    stream: Tokens,
    windows: Windows,
    indices: Sequence[int | None],
    batch_size: int,
    vocab_size: int,
    device: torch.device,
) -> LossSum:
    """Sum the negative log-likelihood over some windows, `batch_size` at a time, accumulated in float64.

    Args:
        logits_of: the model; its logits from `vocab_size` on are padding and take no probability.
        indices: windows to sum over; none in place of an index is the first window, computed but not counted.
    """
    loss_sum, num_tokens = 0.0, 0
    for first in range(0, len(indices), batch_size):
        spans = [_span_or_uncounted(windows, index) for index in indices[first : first + batch_size]]
        longest = max(length for _, length, _ in spans)
        ids = np.zeros((len(spans), longest), dtype=np.int64)
        is_counted = np.zeros((len(spans), longest - 1), dtype=bool)
        for row, (start, length, counted) in enumerate(spans):
            stream.read_into(start, ids[row, :length])
            is_counted[row, length - 1 - counted : length - 1] = True
        samples = torch.from_numpy(ids).to(device)
        logits = logits_of(samples[:, :-1])[..., :vocab_size].float()
        losses = functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten(), reduction="none")
        mask = torch.from_numpy(is_counted.reshape(-1)).to(device)
        loss_sum += float(losses[mask].double().sum())
        num_tokens += int(is_counted.sum())
    return LossSum(loss_sum, num_tokens)


def _span_or_uncounted(windows: Windows, index: int | None) -> tuple[int, int, int]:
    if index is not None:
        return windows.span(index)
    start, length, _ = windows.span(0)
    return start, length, 0
