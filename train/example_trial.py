"""The micro-batch that a fine-tuning tries its memory with: the longest examples there are."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import Precision
from train.examples import Examples
from train.fine_tuning import FineTuning, joint_nats
from train.head import GPT2WithHead
from train.micro_batch import trial


def longest_examples(examples: Examples, count: int) -> NDArray[np.int64]:
    """Numbers of the `count` examples that cost most: by the longest sequence, to which a batch is padded. Where there
    are fewer, they come again."""
    lengths = np.array([len(ids) for ids in examples.ids], dtype=np.int64).reshape(len(examples), examples.sequences)
    return np.resize(np.argsort(-lengths.max(1), kind="stable"), count)


def example_trial(
    model: GPT2WithHead, task: FineTuning, precision: Precision, device: torch.device
) -> Callable[[int], bool]:
    """`trial` of fine-tuning: samples are the longest examples."""

    def nats_of(size: int) -> Tensor:
        batch = task.examples.batch(longest_examples(task.examples, size))
        return joint_nats(model, batch, task.settings, task.vocab_size, device)

    return trial(model, nats_of, precision, device)
