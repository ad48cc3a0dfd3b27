"""The sample of each evaluation, drawn by the code that draws the samples of a finished run."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from malmoi.configs.outputs import SamplingSettings
from malmoi.inference.generate import sample_prompts
from malmoi.inference.model_folder import LoadedModel
from malmoi.inference.sampling import check_sampling, num_new_tokens, prompt_ids
from malmoi.train.models import ModelSpec, SpecialTokenIds


@dataclass(frozen=True)
class EvalSampler:
    """Draws one sample of a prompt, the same for the same weights, without changing training's random state."""

    spec: ModelSpec
    tokenizer: Any
    config: PreTrainedConfig
    """Of the training model, its vocabulary padded."""
    vocab_size: int
    special: SpecialTokenIds
    settings: SamplingSettings
    """Of one sample, which fits the context."""

    @property
    def prompt(self) -> str:
        """The beginning of the sample."""
        return self.settings.prompt

    def draw(self, weights: Mapping[str, Tensor], device: torch.device) -> str:
        """Return the prompt and its continuation.

        Args:
            weights: full parameters by name, the vocabulary padded.
        """
        model = self.spec.to_hf(weights, self.config, self.vocab_size, self.special)
        loaded = LoadedModel(model.to(device).eval(), self.tokenizer)
        with random_state_kept(device):
            [drawn] = sample_prompts(loaded, [self.settings.prompt], self.settings)
        return drawn.samples[0]


def one_sample_settings(
    settings: SamplingSettings, sample_tokens: int, tokenizer: Any, context: int
) -> SamplingSettings | None:
    """Return the settings of an evaluation's sample, or None where there is to be none.

    Args:
        sample_tokens: most new tokens.
        context: positions of the model.

    Raises:
        UserError: the samples of the finished run cannot be drawn or would not fit the context, or there is no prompt.
    """
    check_sampling(settings, "generate.")
    length = len(prompt_ids(tokenizer, settings.prompt, "generate."))
    num_new_tokens(settings, length, context, "generate.")
    if sample_tokens == 0:
        return None
    room = context - length
    return replace(
        settings,
        num_return_sequences=1,
        max_new_tokens=min(sample_tokens, room),
        max_length=None,
        min_new_tokens=min(settings.min_new_tokens, sample_tokens, room),
    )


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore every generator that `transformers.set_seed` seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
