"""Expected calibration error against cases computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.evaluation.calibration import BINS, calibration


def test_the_error_is_the_mean_distance_of_accuracy_and_confidence_over_examples() -> None:
    # Bin (0.9, 1]: confidence 0.95, accuracy 1/2. Bin (0.6, 0.7]: confidence 0.65, accuracy 1.
    rows = [[0.95, 0.05], [0.05, 0.95], [0.65, 0.35], [0.65, 0.35]]
    found = calibration(rows, [0, 0, 0, 0])
    assert found.error == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)
    filled = {
        round(each.high, 1): (each.examples, each.confidence, each.accuracy) for each in found.bins if each.examples
    }
    assert filled == {0.7: (2, pytest.approx(0.65), 1.0), 1.0: (2, pytest.approx(0.95), 0.5)}


def test_a_probability_at_an_edge_is_in_the_bin_below_it() -> None:
    found = calibration([[1.0, 0.0], [0.5, 0.5], [1.0000001, 0.0]], [0, 1, 0])
    assert [each.examples for each in found.bins] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 2]


def test_sure_and_right_is_0_and_sure_and_wrong_is_1() -> None:
    assert calibration([[1.0, 0.0]] * 3, [0, 0, 0]).error == 0
    assert calibration([[1.0, 0.0]] * 3, [1, 1, 1]).error == 1


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 99))
def test_bins_hold_every_example_and_the_error_is_a_fraction(count: int, classes: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = calibration(draw.dirichlet(np.ones(classes), count), draw.integers(0, classes, count))
    assert len(found.bins) == BINS and sum(each.examples for each in found.bins) == count
    assert 0 <= found.error <= 1
    assert all(each.low <= each.confidence <= each.high + 1e-12 for each in found.bins if each.examples)
