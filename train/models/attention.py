"""Attention masks of documents, and attention in 16 bits on a CPU, computed in 32 bits where that is faster."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from malmoi.configs.train import Attention

CPU_SDPA = "cpu_sdpa"
"""The name under which `set_attn_implementation` finds it."""
LONG = 16_384
"""Length times channels of a head from which torch's kernel for bf16 takes less time than that for fp32. On an EPYC
with bf16 instructions: with 64 channels 1.4 times as long at 128 tokens, 0.9 at 256, 0.7 at 1,024; with 32 channels
1.25 at 256, 1.0 at 512, 0.8 at 1,024. In fp16 it takes six times as long and more (benchmarks/step_forms.py)."""


def cpu_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`transformers`' sdpa of `[batch, heads, length, channels]` vectors, given back in their own type."""
    is_long = query.shape[-2] * query.shape[-1] >= LONG
    dtype = torch.bfloat16 if query.dtype == torch.bfloat16 and is_long else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        vectors = (part.to(dtype) for part in (query, key, value))
        mixed, weights = sdpa_attention_forward(module, *vectors, attention_mask, **options)
    return mixed.to(query.dtype), weights


AttentionInterface.register(CPU_SDPA, cpu_sdpa)
AttentionMaskInterface.register(CPU_SDPA, sdpa_mask)


def document_mask(doc_starts: Tensor, attention: Attention) -> Tensor:
    """Return which inputs each input attends to: those of its own document up to itself.

    Args:
        doc_starts: `Batch.doc_starts`, `[batch, block_size]`.

    Returns:
        `[batch, 1, block_size, block_size]`: true where it may attend for sdpa; for eager what is added to the scores.
    """
    sees = (doc_starts[:, :, None] == doc_starts[:, None, :]).tril()[:, None]
    if attention == "eager":
        return torch.zeros(sees.shape, device=sees.device).masked_fill_(~sees, torch.finfo(torch.float32).min)
    return sees
