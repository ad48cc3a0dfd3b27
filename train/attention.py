"""What each token sees, and attention of 16-bit vectors computed in 32 bits, for processors: torch's kernel for them
takes a third less time in fp32 than in bf16 (benchmarks/step_forms.py)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from configs.schema import Attention

SDPA_IN_FP32 = "sdpa_in_fp32"
"""The name under which `set_attn_implementation` finds it."""


def sdpa_in_fp32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`transformers`' sdpa of `[batch, heads, length, channels]` vectors, given back in their own type."""
    with torch.autocast(query.device.type, enabled=False):
        wide = (part.float() for part in (query, key, value))
        mixed, weights = sdpa_attention_forward(module, *wide, attention_mask, **options)
    return mixed.to(query.dtype), weights


AttentionInterface.register(SDPA_IN_FP32, sdpa_in_fp32)
AttentionMaskInterface.register(SDPA_IN_FP32, sdpa_mask)


def document_mask(begins: Tensor, attention: Attention) -> Tensor:
    """Which inputs each input sees: those of its own document up to itself.

    Args:
        begins: `Batch.begins`, `[batch, block_size]`.

    Returns:
        `[batch, 1, block_size, block_size]`: true where it may look for sdpa; for eager what is added to the scores.
    """
    sees = (begins[:, :, None] == begins[:, None, :]).tril()[:, None]
    if attention == "eager":
        return torch.zeros(sees.shape, device=sees.device).masked_fill_(~sees, torch.finfo(torch.float32).min)
    return sees
