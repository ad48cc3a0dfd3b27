"""Settings of the model's architecture and shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from malmoi.configs.ranges import HalfOpenUnitInterval, PositiveFloat, PositiveInt
from malmoi.errors import UserError

ArchitectureName = Literal["gpt2", "llama", "qwen3"] | str
INNER_MULTIPLE = 64
"""Of channels of a gated layer, which matrix units like."""
ONLY_ROTARY = ("n_kv_head", "head_dim", "n_inner", "rope_theta", "tie_embeddings")
"""What GPT-2 does not have."""


@dataclass(frozen=True)
class ModelSettings:
    """Architecture and shape. Defaults are GPT-2 small (124M parameters with 50,257 tokens)."""

    architecture: ArchitectureName = "gpt2"
    """Model family: GPT-2, or one with rotary positions, RMSNorm and gated layers: Llama, or Qwen3 with normalized
    queries and keys."""
    n_layer: PositiveInt = 12
    """Transformer blocks."""
    n_head: PositiveInt = 12
    """Attention heads a block; must divide n_embd."""
    n_embd: PositiveInt = 768
    """Hidden size."""
    block_size: PositiveInt = 1024
    """Tokens in a sample: the context length."""
    dropout: HalfOpenUnitInterval = 0.0
    """Dropout of embeddings, attention and residuals; llama and qwen3 have it in attention alone."""
    n_kv_head: PositiveInt | None = None
    """With llama and qwen3, heads of keys and values, each for a group of queries; must divide n_head. None: n_head."""
    head_dim: PositiveInt | None = None
    """With llama and qwen3, channels of a head. None: n_embd / n_head."""
    n_inner: PositiveInt | None = None
    """With llama and qwen3, channels of the gated layer. None: 8/3 n_embd, rounded up to a multiple of 64."""
    rope_theta: PositiveFloat = 10_000.0
    """With llama and qwen3, base of the rotary positions."""
    tie_embeddings: bool = True
    """With llama and qwen3, whether the output matrix is the embedding."""


def check_heads(settings: ModelSettings) -> None:
    """Check that each head has an equal part of the hidden size.

    Raises:
        UserError: it has not.
    """
    if settings.n_embd % settings.n_head:
        raise UserError(f"model.n_head {settings.n_head} does not divide model.n_embd {settings.n_embd}; change one")


def resolved_rotary(settings: ModelSettings) -> ModelSettings:
    """Return the shape of a llama or qwen3 with every value that follows from others.

    Raises:
        UserError: heads do not divide, or a head has no pairs of channels.
    """
    check_heads(settings)
    kv_heads = settings.n_kv_head or settings.n_head
    if settings.n_head % kv_heads:
        raise UserError(f"model.n_kv_head {kv_heads} does not divide model.n_head {settings.n_head}; change one")
    head_dim = settings.head_dim or settings.n_embd // settings.n_head
    if head_dim % 2:
        raise UserError(
            f"model.head_dim {head_dim}: rotary positions turn pairs of channels; choose an even one, or another n_head"
        )
    n_inner = settings.n_inner or -(-8 * settings.n_embd // (3 * INNER_MULTIPLE)) * INNER_MULTIPLE
    return replace(settings, n_kv_head=kv_heads, head_dim=head_dim, n_inner=n_inner)


def check_has_no_rotary_settings(settings: ModelSettings) -> None:
    """Check that nothing is set that the architecture does not have.

    Raises:
        UserError: there is.
    """
    defaults = ModelSettings()
    for name in ONLY_ROTARY:
        if getattr(settings, name) != getattr(defaults, name):
            raise UserError(
                f"model.{name} {getattr(settings, name)}: model.architecture {settings.architecture} has no such "
                "setting; leave it out, or choose llama or qwen3"
            )
