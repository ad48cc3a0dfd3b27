"""A sample of a model that is being trained, by the code that draws the samples of a finished run."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config

from configs.errors import BadInput
from configs.schema import RunSamplingSettings
from inference.generate import generate
from inference.model_folder import LoadedModel
from inference.sampling import check_sampling, new_tokens, prompt_ids
from train.model import SpecialTokenIds, exported_model


@dataclass(frozen=True)
class LookSampler:
    """Draws one sample of a prompt, the same for the same weights, and leaves no trace in the training."""

    tokenizer: Any
    config: GPT2Config
    """Of the model that is trained, its vocabulary padded."""
    vocab_size: int
    special: SpecialTokenIds
    settings: RunSamplingSettings
    """Of one sample, which fits the context."""

    @property
    def prompt(self) -> str:
        """What the sample begins with."""
        return self.settings.prompt

    def draw(self, weights: dict[str, Tensor], device: torch.device) -> str:
        """The prompt and what the model makes of it.

        Args:
            weights: a `GPT2LMHeadModel`'s parameters by name, whole, the vocabulary padded.
        """
        model = exported_model(weights, self.config, self.vocab_size, self.special)
        loaded = LoadedModel(model.to(device).eval(), self.tokenizer)
        with undisturbed_random_state(device):
            [drawn] = generate(loaded, [self.settings.prompt], self.settings)
        return drawn.samples[0]


def look_sampler(
    settings: RunSamplingSettings, tokenizer: Any, config: GPT2Config, vocab_size: int, special: SpecialTokenIds
) -> LookSampler | None:
    """What draws the samples of a run's looks; none where it is to draw none.

    Raises:
        BadInput: the samples of the finished run cannot be drawn or would not fit the context, or there is no prompt.
    """
    check_sampling(settings, "sampling.")
    length = len(prompt_ids(tokenizer, settings.prompt, "sampling."))
    new_tokens(settings, length, config.n_positions, "sampling.")
    if settings.every_look < 0:
        raise BadInput(f"sampling.every_look {settings.every_look}: choose 0 or more tokens")
    if settings.every_look == 0:
        return None
    room = config.n_positions - length
    one = replace(
        settings,
        num_return_sequences=1,
        max_new_tokens=min(settings.every_look, room),
        max_length=None,
        min_new_tokens=min(settings.min_new_tokens, settings.every_look, room),
    )
    return LookSampler(tokenizer, config, vocab_size, special, one)


@contextmanager
def undisturbed_random_state(device: torch.device) -> Iterator[None]:
    """Put every generator that `transformers.set_seed` seeds back to where it stood."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
