import json
import math
from dataclasses import asdict

from configs.schema import DivergenceSettings
from train.divergence import DivergenceWatch, divergence_state


def test_only_updates_in_a_row_count() -> None:
    watch = DivergenceWatch(DivergenceSettings(nonfinite_steps=3))
    verdicts = [watch.verdict(None, skipped) for skipped in (True, True, False, True, True, True)]
    assert [verdict is not None for verdict in verdicts] == [False] * 5 + [True]


def test_a_loss_far_above_its_recent_course_is_a_spike_and_a_drift_is_none() -> None:
    watch = DivergenceWatch(DivergenceSettings(spike_deviations=6.0, spike_window=10))
    losses = [3.0 - 0.01 * step + 0.02 * math.sin(step) for step in range(40)]
    assert not any(watch.verdict(loss, False) for loss in losses)
    verdict = watch.verdict(4.5, False)
    assert verdict is not None
    assert verdict.startswith("a loss of 4.5000, more than 6 deviations of ")


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    watch = DivergenceWatch(DivergenceSettings(spike_deviations=1.0, spike_window=5))
    assert [watch.verdict(loss, False) for loss in (1.0, 100.0, 1.0, 500.0, 1.0)] == [None] * 5


def test_losses_are_not_asked_for_where_nobody_looks_at_them() -> None:
    assert not DivergenceWatch(DivergenceSettings()).wants_losses
    assert DivergenceWatch(DivergenceSettings(spike_deviations=3.0)).wants_losses


def test_a_watch_goes_on_from_what_another_saw() -> None:
    settings = DivergenceSettings(nonfinite_steps=2, spike_deviations=2.0, spike_window=3)
    before, after = DivergenceWatch(settings), DivergenceWatch(settings)
    for loss in (1.0, 1.1, 1.05, 1.02):
        before.verdict(loss, False)
    before.verdict(None, True)
    after.restore(divergence_state(json.loads(json.dumps(asdict(before.state())))))
    assert after.state() == before.state()
    for watch in (before, after):
        assert watch.verdict(50.0, True) == "2 updates in a row whose loss or gradient was not finite"
        assert watch.verdict(50.0, False) is not None


def test_after_a_rollback_the_count_begins_anew_and_a_spike_is_still_one() -> None:
    watch = DivergenceWatch(DivergenceSettings(nonfinite_steps=2, spike_deviations=2.0, spike_window=2))
    for loss in (1.0, 1.1):
        watch.verdict(loss, False)
    watch.verdict(None, True)
    watch.after_rollback()
    assert watch.verdict(None, True) is None
    assert watch.verdict(50.0, False) is not None
