"""Which micro-batches a rank computes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.errors import UserError
from malmoi.train.distributed.parallel_dims import ParallelDims


@given(st.integers(1, 5), st.integers(1, 16), st.integers(1, 6))
def test_the_ranks_together_compute_each_micro_batch_of_a_step_once(
    micro_batch_size: int, dp_size: int, accumulation: int
) -> None:
    """And those of one accumulation step come before those of the next, at any number of ranks."""
    count = dp_size * accumulation
    ranks = [ParallelDims(rank, dp_size) for rank in range(dp_size)]
    assert {dims.accumulation_steps(count * micro_batch_size, micro_batch_size) for dims in ranks} == {accumulation}
    assert [dims.micro_batch_index(step) for step in range(accumulation) for dims in ranks] == list(range(count))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 16))
def test_copies_of_the_model_share_the_ranks_evenly_or_are_refused(replicas: int, shard_size: int, other: int) -> None:
    dims = ParallelDims(0, replicas * shard_size).with_replicas(replicas)
    assert (dims.replicas, dims.shard_size, dims.dp_size) == (replicas, shard_size, replicas * shard_size)
    if (replicas * shard_size) % other:
        with pytest.raises(UserError, match=rf"parallel\.replicas {other} does not divide {dims.dp_size} ranks?;"):
            dims.with_replicas(other)


@pytest.mark.parametrize(("global_batch_size", "dp_size"), [(8, 3), (4, 2), (6, 1)])
def test_a_global_batch_that_the_ranks_do_not_divide_is_refused(global_batch_size: int, dp_size: int) -> None:
    ranks = f"{dp_size} rank" + "s" * (dp_size > 1)
    message = (
        rf"train.global_batch_size {global_batch_size} is no multiple of train.micro_batch_size 4 x {ranks} "
        rf"= {4 * dp_size}; change one of them, or set train\.micro_batch_size auto"
    )
    with pytest.raises(UserError, match=message):
        ParallelDims(0, dp_size).accumulation_steps(global_batch_size, 4)
