"""Curves of any length are drawn from few points, and lose no extreme."""

import numpy as np
import pytest

from malmoi.launch.report.charts import thinned_points


@pytest.mark.parametrize("count", [0, 1, 2, 1999, 2000, 2001, 5003])
def test_thinning_keeps_the_ends_and_the_extremes(count: int) -> None:
    values = np.sin(np.arange(count) * 0.7)
    kept = thinned_points(values, 2000)
    assert len(kept) <= 2000 and list(kept) == sorted(set(kept.tolist()))
    if count:
        assert kept[0] == 0 and kept[-1] == count - 1
        assert values[kept].max() == values.max() and values[kept].min() == values.min()


def test_thinning_passes_over_what_is_not_finite() -> None:
    values = np.full(5000, np.nan)
    values[[77, 4000]] = 3.0, np.inf
    assert set(thinned_points(values, 2000).tolist()) == {0, 77, 4999}
