"""What is read ahead is what would have been read, and only what was asked for is given."""

from dataclasses import dataclass, field
from typing import Any

import torch

from train.read_ahead import ReadAhead


@dataclass
class Numbers:
    """A task whose samples are their numbers; remembers what was read."""

    read_at: list[int] = field(default_factory=list)

    def read(self, first_sample: int, count: int) -> Any:
        self.read_at.append(first_sample)
        return list(range(first_sample, first_sample + count))


GPU, CPU = torch.device("cuda"), torch.device("cpu")


def test_what_was_read_ahead_is_given_once_and_not_read_again() -> None:
    task = Numbers()
    samples = ReadAhead(task, 4)  # type: ignore[arg-type]  # all that it asks of a task
    samples.read_while(GPU, 8)
    assert samples.take(8) == [8, 9, 10, 11] and task.read_at == [8]
    assert samples.take(8) == [8, 9, 10, 11] and task.read_at == [8, 8]


def test_after_a_jump_the_samples_that_are_asked_for_are_read() -> None:
    task = Numbers()
    samples = ReadAhead(task, 4)  # type: ignore[arg-type]  # all that it asks of a task
    samples.read_while(GPU, 8)
    assert samples.take(100) == [100, 101, 102, 103]
    assert samples.take(8) == [8, 9, 10, 11] and task.read_at == [8, 100]


def test_beside_a_cpu_nothing_is_read_ahead() -> None:
    task = Numbers()
    ReadAhead(task, 4).read_while(CPU, 8)  # type: ignore[arg-type]  # all that it asks of a task
    assert task.read_at == []
