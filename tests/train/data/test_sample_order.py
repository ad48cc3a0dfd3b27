"""The order of samples: a permutation an epoch, exact at any size, the same in every version."""

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malmoi.train.data.sample_order import SampleOrder, permuted

TRILLION = 10**12


@given(count=st.integers(1, 5000), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_each_epoch_visits_each_block_once(count: int, seed: int, epoch: int) -> None:
    visited = permuted(np.arange(count, dtype=np.uint64), count, seed, epoch)
    assert sorted(visited.tolist()) == list(range(count))


def test_a_permutation_above_two_hundred_million_stays_exact() -> None:
    count = 2**28 + 12345
    indices = np.unique(np.random.default_rng(1).integers(0, count, 2_000_000)).astype(np.uint64)
    visited = permuted(indices, count, 7, 3)
    assert len(np.unique(visited)) == len(indices)
    assert int(visited.max()) < count


def test_a_trillion_samples_need_no_memory_and_do_not_collide() -> None:
    indices = np.arange(TRILLION - 500_000, TRILLION, dtype=np.uint64)
    visited = permuted(indices, TRILLION, 42, 0)
    assert len(np.unique(visited)) == len(indices)
    assert int(visited.max()) < TRILLION
    assert abs(float(visited.astype(np.float64).mean()) / TRILLION - 0.5) < 0.005


def backwards(place: int, count: int, seed: int, epoch: int) -> int:
    """The sample that the permutation sends to `place`: the network run backwards in Python's own integers."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = [
        int.from_bytes(blake2b(repr(("order", seed, epoch, n)).encode(), digest_size=8).digest(), "little")
        for n in range(6)
    ]
    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for key in reversed(keys):
            mixed = left ^ key
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
            left, right = right ^ ((mixed ^ (mixed >> 31)) & ((1 << half) - 1)), left
        place = (left << half) | right
        if place < count:
            return place


@pytest.mark.parametrize("count", [5, 2 * 10**8 + 1, 2**28 + 12345, TRILLION, 2**53 + 11, 2**62])
def test_each_sample_of_a_large_epoch_is_found_again_from_its_place(count: int) -> None:
    """Collisions among 10^12 are too rare to be met by sampling; an inverse shows that there is none."""
    drawn = np.random.default_rng(count % 1000).integers(0, count, 400)
    samples = np.concatenate([drawn, [0, count - 1, count // 2]]).astype(np.uint64)
    places = permuted(samples, count, 42, 5)
    assert [backwards(place, count, 42, 5) for place in places.tolist()] == samples.tolist()


def test_samples_of_a_large_epoch_are_spread_all_over_it() -> None:
    places = permuted(np.arange(64_000, dtype=np.uint64), TRILLION, 42, 0)
    shares = np.bincount((places // np.uint64(TRILLION // 64)).astype(np.int64), minlength=64)[:64]
    assert shares.min() > 800 and shares.max() < 1200, "64 parts of the epoch with a thousand samples each"


def test_the_order_is_the_same_in_every_version() -> None:
    assert permuted(np.arange(4, dtype=np.uint64), TRILLION, 42, 0).tolist() == [
        607086756226,
        198494079690,
        492735421372,
        768050212770,
    ]
    assert SampleOrder(10**13, 1024, 42).phase(3) == 843


def test_epochs_and_seeds_differ_and_repeat_themselves() -> None:
    indices = np.arange(1000, dtype=np.uint64)
    first = permuted(indices, 1000, 42, 0)
    assert (first == permuted(indices, 1000, 42, 0)).all()
    assert (first != permuted(indices, 1000, 42, 1)).any()
    assert (first != permuted(indices, 1000, 43, 0)).any()
    assert abs(np.corrcoef(first.astype(float), indices.astype(float))[0, 1]) < 0.15


@given(tokens=st.integers(0, 4000), block_size=st.integers(1, 64), seed=st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_blocks_of_an_epoch_are_side_by_side_inside_the_stream(tokens: int, block_size: int, seed: int) -> None:
    order = SampleOrder(tokens, block_size, seed)
    many = order.samples_per_epoch
    assert (many == 0) == (tokens <= block_size)
    if many == 0:
        return
    for epoch in (0, 1):
        starts = np.sort(order.starts(np.arange(epoch * many, (epoch + 1) * many)))
        assert (np.diff(starts) == block_size).all()
        assert starts[0] == order.phase(epoch)
        assert starts[0] >= 0
        assert starts[-1] + block_size + 1 <= tokens


def test_block_boundaries_move_from_epoch_to_epoch() -> None:
    order = SampleOrder(10_000, 128, 42)
    assert len({order.phase(epoch) for epoch in range(20)}) > 10


@given(first=st.integers(0, 500), count=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_any_slice_is_that_slice_of_all_samples(first: int, count: int) -> None:
    order = SampleOrder(5_000, 50, 9)
    assert (order.starts(np.arange(first, first + count)) == order.starts(np.arange(700))[first : first + count]).all()
