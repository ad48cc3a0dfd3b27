"""Settings of the model's architecture and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from malmoi.configs.ranges import HalfOpenUnitInterval, PositiveInt
from malmoi.errors import UserError

ArchitectureName = Literal["gpt2"] | str


@dataclass(frozen=True)
class ModelSettings:
    """Architecture and shape. Defaults are GPT-2 small (124M parameters with 50,257 tokens)."""

    architecture: ArchitectureName = "gpt2"
    """Model family."""
    n_layer: PositiveInt = 12
    """Transformer blocks."""
    n_head: PositiveInt = 12
    """Attention heads a block; must divide n_embd."""
    n_embd: PositiveInt = 768
    """Hidden size."""
    block_size: PositiveInt = 1024
    """Tokens in a sample: the context length."""
    dropout: HalfOpenUnitInterval = 0.0
    """Dropout of embeddings, attention and residuals."""


def check_heads(settings: ModelSettings) -> None:
    """Check that each head has an equal part of the hidden size.

    Raises:
        UserError: it has not.
    """
    if settings.n_embd % settings.n_head:
        raise UserError(f"model.n_head {settings.n_head} does not divide model.n_embd {settings.n_embd}; change one")
