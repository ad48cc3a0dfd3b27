"""From memory-mapped shards to the token ids of a micro-batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.errors import BadInput
from data_prep.shards import TokenStream
from train.order import SampleOrder


@dataclass(frozen=True)
class SampleReader:
    """Reads samples by number."""

    stream: TokenStream
    order: SampleOrder

    def read(self, first_sample: int, count: int) -> NDArray[np.int64]:
        """Samples `first_sample` on as `int64[count, block_size + 1]`: each block and the token after it."""
        samples = np.empty((count, self.order.block_size + 1), dtype=np.int64)
        for row, start in zip(samples, self.order.starts(first_sample, count), strict=True):
            self.stream.read_into(int(start), row)
        return samples


def open_samples(stream: TokenStream, block_size: int, seed: int) -> SampleReader:
    """A reader over the training stream.

    Raises:
        BadInput: the stream is shorter than one block.
    """
    order = SampleOrder(len(stream), block_size, seed)
    if order.samples_per_epoch == 0:
        raise BadInput(
            f"the corpus is shorter than one block: {len(stream)} training tokens, model.block_size {block_size} "
            f"needs {block_size + 1}; give more text or a smaller block"
        )
    return SampleReader(stream, order)
