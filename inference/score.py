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
"""From `int64[batch, tokens]` to `float[batch, tokens, vocabulary]`."""


class Tokens(Protocol):
    """Anything with a length and `read_into`, a `TokenStream` for one."""

    def __len__(self) -> int: ...

    def read_into(self, start: int, out: NDArray[np.int64]) -> None: ...


@dataclass(frozen=True)
class Nats:
    """Negative log-likelihood, summed, and the tokens that it is of."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Score:
    """What `malmoi evaluate` prints."""

    loss: float
    """Nats a token."""
    perplexity: float
    bits_per_byte: float
    """Of the documents' UTF-8 text, so that tokenizers compare."""
    tokens: int
    """Predicted tokens: all but the first of the stream."""
    bytes: int

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)


def score_of(measured: Nats, stream_tokens: int, text_bytes: int) -> Score:
    """The score of a stream whose text has `text_bytes` bytes, `measured` over all of it or over a part.

    A part's bits are set against the bytes that its share of the stream's tokens stands for.
    """
    loss = measured.nats / measured.tokens
    text_share = text_bytes * measured.tokens / (stream_tokens - 1)
    return Score(
        loss=loss,
        perplexity=perplexity_of(loss),
        bits_per_byte=measured.nats / math.log(2) / text_share if text_share else math.inf,
        tokens=measured.tokens,
        bytes=round(text_share),
    )


def perplexity_of(loss: float) -> float:
    """Of a loss in nats; infinite where no float holds it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def readable_perplexity(perplexity: float) -> str:
    """With a digit behind the point, and large ones, of a model that has gone wrong, in few digits."""
    return f"{perplexity:,.1f}" if perplexity < 1e9 else f"{perplexity:.3g}"


@dataclass(frozen=True)
class Windows:
    """How a stream is cut for scoring: windows of `block_size` targets that start `stride` tokens apart.

    Each target is scored once, in the first window that reaches it, so that with a stride below `block_size`
    every target but the first few has at least `block_size - stride` tokens of context.
    """

    stream_tokens: int
    block_size: int
    stride: int

    def __len__(self) -> int:
        targets = self.stream_tokens - 1
        return max(0, 1 + -(-max(0, targets - self.block_size) // self.stride)) if targets > 0 else 0

    def span(self, number: int) -> tuple[int, int, int]:
        """First token read, tokens read, and how many of the targets at the end of the window are scored."""
        start = number * self.stride
        targets = min(self.block_size, self.stream_tokens - 1 - start)
        scored = targets if number == 0 else start + targets - ((number - 1) * self.stride + self.block_size)
        return start, targets + 1, scored


def nats_of_windows(
    logits_of: Logits,
    stream: Tokens,
    windows: Windows,
    numbers: Sequence[int | None],
    batch: int,
    vocab_size: int,
    device: torch.device,
) -> Nats:
    """Sum the negative log-likelihood over the windows `numbers`, `batch` at a time, accumulated in float64.

    In place of a number, none stands for the first window, computed and not counted.
    Logits from `vocab_size` on are padding and take no probability.
    """
    nats, tokens = 0.0, 0
    for first in range(0, len(numbers), batch):
        spans = [_span_or_blank(windows, number) for number in numbers[first : first + batch]]
        longest = max(length for _, length, _ in spans)
        ids = np.zeros((len(spans), longest), dtype=np.int64)
        counted = np.zeros((len(spans), longest - 1), dtype=bool)
        for row, (start, length, scored) in enumerate(spans):
            stream.read_into(start, ids[row, :length])
            counted[row, length - 1 - scored : length - 1] = True
        samples = torch.from_numpy(ids).to(device)
        logits = logits_of(samples[:, :-1])[..., :vocab_size].float()
        losses = functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten(), reduction="none")
        mask = torch.from_numpy(counted.reshape(-1)).to(device)
        nats += float(losses[mask].double().sum())
        tokens += int(counted.sum())
    return Nats(nats, tokens)


def _span_or_blank(windows: Windows, number: int | None) -> tuple[int, int, int]:
    if number is not None:
        return windows.span(number)
    start, length, _ = windows.span(0)
    return start, length, 0
