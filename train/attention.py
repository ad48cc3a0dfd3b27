"""Attention of 16-bit vectors computed in 32 bits, for processors: torch's kernel for them takes a third less time in
fp32 than in bf16 (benchmarks/step_forms.py)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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
