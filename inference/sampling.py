"""Whether a model can be asked for such samples, and how `transformers` is."""

import math
from typing import Any

from transformers import PreTrainedTokenizerBase

from configs.errors import BadInput
from configs.schema import SamplingSettings


def check_sampling(settings: SamplingSettings, group: str = "") -> None:
    """See that a model can be asked for such samples.

    Args:
        group: before the names of settings, where they are those of a run.

    Raises:
        BadInput: a setting is out of range, or does not go with another.
    """
    at_least_1, at_least_0 = "choose 1 or more", "choose 0 or more"
    checks = {
        "num_return_sequences": (settings.num_return_sequences >= 1, at_least_1),
        "max_new_tokens": (settings.max_new_tokens >= 1, at_least_1),
        "min_new_tokens": (settings.min_new_tokens >= 0, at_least_0),
        "min_p": (0 <= settings.min_p < 1, "choose 0 or more, and less than 1"),
        "no_repeat_ngram_size": (settings.no_repeat_ngram_size >= 0, at_least_0),
        "temperature": (
            0 < settings.temperature < math.inf,
            f"choose a number above 0; {group}do_sample false always takes the likeliest token",
        ),
        "top_k": (settings.top_k >= 0, at_least_0),
        "top_p": (0 < settings.top_p <= 1, "choose a share above 0, up to 1"),
        "repetition_penalty": (0 < settings.repetition_penalty < math.inf, "choose a number above 0"),
        "num_beams": (settings.num_beams >= 1, at_least_1),
        "seed": (0 <= settings.seed < 2**32, "choose a number from 0 to 2^32 - 1"),
    }
    for name, (good, remedy) in checks.items():
        if not good:
            raise BadInput(f"{group}{name} {getattr(settings, name)}: {remedy}")
    many, beams = settings.num_return_sequences, settings.num_beams
    if many > beams and (beams > 1 or not settings.do_sample):
        raise BadInput(
            f"{group}num_return_sequences {many} is more than {group}num_beams {beams}: a beam gives one sample, and "
            "without drawing all others would be the same; choose as many beams"
        )


def generate_options(settings: SamplingSettings) -> dict[str, Any]:
    """The settings as keywords of `transformers`' `generate`, without the most new tokens, which hang on the prompt.

    Raises:
        BadInput: a setting is out of range, or does not go with another.
    """
    check_sampling(settings)
    options: dict[str, Any] = {
        "num_return_sequences": settings.num_return_sequences,
        "min_new_tokens": settings.min_new_tokens or None,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram_size,
        "num_beams": settings.num_beams,
    }
    if settings.do_sample:
        options |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        options |= {"min_p": settings.min_p} if settings.min_p else {}
    if settings.num_beams > 1:
        options["length_penalty"] = settings.length_penalty
    return options


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, group: str = "") -> list[int]:
    """The tokens that a model reads for `prompt`, one or more; a `<s>` that is spelt out is the one put before it.

    Args:
        group: before the names of settings, where they are those of a run.

    Raises:
        BadInput: there are none.
    """
    ids = list(tokenizer(prompt.removeprefix(tokenizer.bos_token or ""))["input_ids"])
    if not ids:
        raise BadInput(f"{group}prompt: empty, and this tokenizer puts no token before it; give some text")
    return ids


def new_tokens(settings: SamplingSettings, length: int, context: int, group: str = "") -> int:
    """How many tokens a prompt of `length` tokens may grow by: 1 to what `context` has left.

    Args:
        group: before the names of settings, where they are those of a run.

    Raises:
        BadInput: the settings ask for more, or for none.
    """
    name = "max_new_tokens" if settings.max_length is None else "max_length"
    given = settings.max_new_tokens if settings.max_length is None else settings.max_length
    new = given if settings.max_length is None else given - length
    room = context - length
    if 1 <= new <= room:
        return new
    fault = f"a prompt of {length} tokens and {new} new ones do not fit the model's context of {context}"
    if new < 1:
        fault = f"a prompt of {length} tokens is as long already"
    remedy = f"choose {room} or less" if settings.max_length is None else f"choose more than {length}, up to {context}"
    if room < 1:
        remedy = f"shorten the prompt by {1 - room} tokens"
    raise BadInput(f"{group}{name} {given}: {fault}; {remedy}")
