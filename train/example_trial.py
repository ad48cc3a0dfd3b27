"""The micro-batch that a fine-tuning tries its memory with: the longest examples there are."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from configs.schema import Precision
from train.examples import Examples
from train.fine_tuning import FineTuning, joint_nats
from train.head import GPT2WithHead
from train.micro_batch import STATE_BYTES_A_PARAMETER
from train.parallel import HALF_DTYPES


def longest_examples(examples: Examples, count: int) -> NDArray[np.int64]:
    """Numbers of the `count` examples that cost most: by the longest sequence, to which a batch is padded. Where there
    are fewer, they come again."""
    lengths = np.array([len(ids) for ids in examples.ids], dtype=np.int64).reshape(len(examples), examples.sequences)
    return np.resize(np.argsort(-lengths.max(1), kind="stable"), count)


def example_trial(
    model: GPT2WithHead, task: FineTuning, precision: Precision, device: torch.device
) -> Callable[[int], bool]:
    """A forward and backward pass over the longest examples, with room kept for an optimiser."""

    def fits(size: int) -> bool:
        dtype = HALF_DTYPES.get(precision)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        try:
            reserve = torch.empty(STATE_BYTES_A_PARAMETER * parameters, dtype=torch.uint8, device=device)
            batch = task.examples.batch(longest_examples(task.examples, size))
            with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                nats = joint_nats(model, batch, task.settings, task.vocab_size, device)
            torch.autograd.backward(nats)
            del reserve
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True

    return fits
