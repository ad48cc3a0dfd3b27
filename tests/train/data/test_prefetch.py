"""What is prefetched is what would have been read, and only what is needed is returned."""

from dataclasses import dataclass, field
from typing import Any

import torch

from malmoi.train.data.prefetch import Prefetcher


@dataclass
class Numbers:
    """Samples that are their numbers; remembers what was read."""

    read_at: list[int] = field(default_factory=list)

    def read(self, first_sample: int, count: int) -> Any:
        self.read_at.append(first_sample)
        return list(range(first_sample, first_sample + count))


GPU, CPU = torch.device("cuda"), torch.device("cpu")


def test_what_was_prefetched_is_returned_once_and_not_read_again() -> None:
    numbers = Numbers()
    samples = Prefetcher(numbers.read, 4)
    samples.prefetch(8, GPU)
    assert samples.take(8) == [8, 9, 10, 11] and numbers.read_at == [8]
    assert samples.take(8) == [8, 9, 10, 11] and numbers.read_at == [8, 8]


def test_after_a_jump_the_samples_that_are_needed_are_read() -> None:
    numbers = Numbers()
    samples = Prefetcher(numbers.read, 4)
    samples.prefetch(8, GPU)
    assert samples.take(100) == [100, 101, 102, 103]
    assert samples.take(8) == [8, 9, 10, 11] and numbers.read_at == [8, 100]


def test_on_a_cpu_nothing_is_prefetched() -> None:
    numbers = Numbers()
    Prefetcher(numbers.read, 4).prefetch(8, CPU)
    assert numbers.read_at == []
