"""The tokens that `transformers` draws for a seed, with less than half of the work for random numbers on a CPU.

torch draws from a row of probabilities as argmax(p / q) with q exponential, one for each token of the vocabulary, of
which top_k then leaves a few. Here the generator gives the same numbers, and their logarithms are taken only where a
token can be drawn.
"""

from functools import cache

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from configs.schema import SamplingSettings


def drawing(settings: SamplingSettings) -> LogitsProcessorList:
    """What makes a search for the likeliest token draw as `settings` say: after it, one token is left in each row."""
    steps = LogitsProcessorList()
    if settings.temperature != 1:
        steps.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        steps.append(MinPLogitsWarper(settings.min_p))
    steps.append(_Draw())
    return steps


class _Draw(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = drawn(scores.softmax(-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def drawn(probabilities: Tensor) -> Tensor:
    """`torch.multinomial(probabilities, 1)`, the same number and the same state of the generator after it.

    Args:
        probabilities: fp32[rows, vocabulary] on the CPU, with zeros where nothing can be drawn.

    Returns:
        int64[rows, 1].
    """
    uniform = torch.rand(probabilities.shape, dtype=torch.float64)
    places = probabilities.nonzero(as_tuple=True)
    exponential = (-torch.log1p(-uniform[places])).float()
    ratios = torch.zeros_like(probabilities)
    ratios[places] = probabilities[places] / exponential
    return ratios.argmax(-1, keepdim=True)


@cache
def draws_as_torch() -> bool:
    """Whether torch's exponential numbers are on this machine those that `drawn` knows; MKL's are others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs, after = torch.empty(64, 256).exponential_(), torch.rand(1)
        torch.manual_seed(0)
        ours = (-torch.log1p(-torch.rand(64, 256, dtype=torch.float64))).float()
        return torch.equal(theirs, ours) and torch.equal(after, torch.rand(1))
