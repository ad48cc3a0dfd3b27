"""Sampling settings as arguments of `transformers`' `generate`, and its sampling for half the cost on a CPU.

torch samples from a row of probabilities as argmax(p / q) with q exponential, one for each token of the vocabulary, of
which top_k then leaves a few. Here the generator gives the same numbers, and their logarithms are taken only where a
token can be sampled, so that a seed gives the same tokens.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from malmoi.configs.outputs import SamplingSettings
from malmoi.errors import UserError

SAMPLED_HERE = ("num_return_sequences", "temperature", "top_k", "top_p", "min_p")
"""Arguments of `generate` that `sampling_processors` replaces."""


def check_sampling(settings: SamplingSettings, group: str = "") -> None:
    """Check what the types of the settings cannot: open bounds, and settings that exclude each other.

    Args:
        group: prefix of the settings' names in messages, such as `generate.` for those of a run.

    Raises:
        UserError: a setting is out of range, or does not go with another.
    """
    checks = {
        "min_p": (0 <= settings.min_p < 1, "choose 0 or more, and less than 1"),
        "temperature": (
            0 < settings.temperature < math.inf,
            f"choose a number above 0; {group}do_sample false always takes the most probable token",
        ),
        "top_p": (0 < settings.top_p <= 1, "choose a number above 0, up to 1"),
        "repetition_penalty": (settings.repetition_penalty < math.inf, "choose a finite number above 0"),
        "seed": (0 <= settings.seed < 2**32, "choose a number from 0 to 2^32 - 1"),
    }
    for name, (is_valid, remedy) in checks.items():
        if not is_valid:
            raise UserError(f"{group}{name} {getattr(settings, name)}: {remedy}")
    count, beams = settings.num_return_sequences, settings.num_beams
    if count > beams and (beams > 1 or not settings.do_sample):
        raise UserError(
            f"{group}num_return_sequences {count} is more than {group}num_beams {beams}: a beam gives one sample, and "
            f"without sampling all others would be equal; raise {group}num_beams, or lower {group}num_return_sequences"
        )


def generate_arguments(settings: SamplingSettings) -> dict[str, Any]:
    """Return the settings as arguments of `transformers`' `generate`, but for `max_new_tokens`, which depends on the
    prompt.

    Raises:
        UserError: a setting is out of range, or does not go with another.
    """
    check_sampling(settings)
    arguments: dict[str, Any] = {
        "num_return_sequences": settings.num_return_sequences,
        "min_new_tokens": settings.min_new_tokens or None,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram_size,
        "num_beams": settings.num_beams,
    }
    if settings.do_sample:
        arguments |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        arguments |= {"min_p": settings.min_p} if settings.min_p else {}
    if settings.num_beams > 1:
        arguments["length_penalty"] = settings.length_penalty
    return arguments


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, group: str = "") -> list[int]:
    """Return the tokens that a model reads for `prompt`, at least one; a literal `<s>` at its start is the one that the
    tokenizer adds.

    Args:
        group: prefix of the settings' names in messages.

    Raises:
        UserError: there are none, or the prompt is no text.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError(f"{group}prompt: holds bytes that are not UTF-8; give text")
    ids = list(tokenizer(prompt.removeprefix(tokenizer.bos_token or ""))["input_ids"])
    if not ids:
        raise UserError(f"{group}prompt: empty, and this tokenizer adds no token before it; give some text")
    return ids


def num_new_tokens(settings: SamplingSettings, prompt_length: int, context_length: int, group: str = "") -> int:
    """Return how many tokens may be added to a prompt of `prompt_length` tokens: at least 1.

    Args:
        group: prefix of the settings' names in messages.

    Raises:
        UserError: the settings ask for none, or for more than the context has room for.
    """
    name = "max_new_tokens" if settings.max_length is None else "max_length"
    given = settings.max_new_tokens if settings.max_length is None else settings.max_length
    new = given if settings.max_length is None else given - prompt_length
    room = context_length - prompt_length
    if 1 <= new <= room:
        return new
    context = f"the model's context of {context_length}"
    problem = f"a prompt of {prompt_length} tokens and {new} new ones do not fit {context}"
    remedy = f"choose {room} or less"
    if new < 1:
        problem = f"a prompt of {prompt_length} tokens leaves no room for new ones"
    if settings.max_length is not None:
        remedy = f"choose more than {prompt_length}, up to {context_length}"
    if room < 1:
        remedy = f"shorten the prompt by {1 - room} tokens"
    raise UserError(f"{group}{name} {given}: {problem}; {remedy}")


def sampling_processors(settings: SamplingSettings) -> LogitsProcessorList:
    """Return processors that make greedy search sample as `settings` say: they leave one token in each row."""
    processors = LogitsProcessorList()
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    processors.append(_SampleToken())
    return processors


class _SampleToken(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = sample_rows(scores.softmax(-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def sample_rows(probabilities: Tensor) -> Tensor:
    """Return `torch.multinomial(probabilities, 1)`, and leave the generator in the same state.

    Args:
        probabilities: fp32[rows, vocabulary] on the CPU, with zeros where nothing can be sampled.

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
def samples_as_torch() -> bool:
    """Return whether torch makes exponential numbers on this machine as `sample_rows` does; MKL makes others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs, after = torch.empty(64, 256).exponential_(), torch.rand(1)
        torch.manual_seed(0)
        ours = (-torch.log1p(-torch.rand(64, 256, dtype=torch.float64))).float()
        return torch.equal(theirs, ours) and torch.equal(after, torch.rand(1))
