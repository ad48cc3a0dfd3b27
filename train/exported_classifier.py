"""What an exported classifier answers to labeled examples: the numbers that `transformers`' pipeline gives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from malmoi.train.data.labeled import Examples


@torch.no_grad()
def exported_outputs(
    folder: Path,
    examples: Examples,
    device: torch.device,
    sums_sequences: bool,
    still_working: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Return the outputs of the model in `folder` for all examples, `float32[examples, outputs]`, before a softmax.

    In fp32 and a sequence at a time, as the pipeline computes: in a batch, padding and the order of sums would give
    other roundings.

    Args:
        sums_sequences: an example's outputs are the sum of its sequences', as for similarity; else they are beside each
            other.
        still_working: called after each sequence.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    model = model.to(device).eval()
    rows = []
    with _full_fp32():
        for sequence in examples.ids:
            ids = torch.from_numpy(sequence.astype(np.int64))[None].to(device)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            rows.append(logits[0].float().cpu().numpy())
            still_working()
    outputs = np.stack(rows).reshape(len(examples), examples.sequences, -1)
    return outputs.sum(1) if sums_sequences else outputs.reshape(len(examples), -1)


def probabilities(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax of each row, in the pipeline's own steps and precision."""
    shifted = np.exp(outputs - outputs.max(-1, keepdims=True))
    probability: NDArray[np.float32] = shifted / shifted.sum(-1, keepdims=True)
    return probability


@contextmanager
def _full_fp32() -> Iterator[None]:
    """Multiply fp32 matrices in fp32 in the block: training allows TF32, and a process of its own does not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
