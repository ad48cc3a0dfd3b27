"""Divergence is seen from losses and skipped steps alone, the same after a resume."""

import json
import math
from dataclasses import asdict, replace

from malmoi.configs.train import RollbackSettings
from malmoi.train.checkpoint.train_state import LossSpikeState, TrainState, train_state_from_json
from malmoi.train.metrics.loss_spike import LossSpikeDetector


def after_json(state: LossSpikeState) -> LossSpikeState | None:
    """Return what a checkpoint gives back of `state`."""
    train_state = replace(TrainState(0, 0, 0, 0, "data", None, None), loss_spike=state)
    return train_state_from_json(json.loads(json.dumps(asdict(train_state)))).loss_spike


def test_only_steps_in_a_row_count() -> None:
    detector = LossSpikeDetector(RollbackSettings(max_nonfinite_steps=3))
    problems = [detector.problem(None, skipped) for skipped in (True, True, False, True, True, True)]
    assert [problem is not None for problem in problems] == [False] * 5 + [True]


def test_with_0_no_number_of_steps_in_a_row_is_a_problem() -> None:
    detector = LossSpikeDetector(RollbackSettings(max_nonfinite_steps=0))
    assert [detector.problem(None, True) for _ in range(50)] == [None] * 50


def test_a_loss_far_above_its_recent_course_is_a_spike_and_a_drift_is_none() -> None:
    detector = LossSpikeDetector(RollbackSettings(spike_zscore=6.0, spike_window=10))
    losses = [3.0 - 0.01 * step + 0.02 * math.sin(step) for step in range(40)]
    assert not any(detector.problem(loss, False) for loss in losses)
    problem = detector.problem(4.5, False)
    assert problem is not None
    assert problem.startswith("a loss of 4.5000, more than 6 standard deviations of ")


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    detector = LossSpikeDetector(RollbackSettings(spike_zscore=1.0, spike_window=5))
    assert [detector.problem(loss, False) for loss in (1.0, 100.0, 1.0, 500.0, 1.0)] == [None] * 5


def test_losses_are_copied_from_the_device_only_where_spikes_are_watched_for() -> None:
    assert not LossSpikeDetector(RollbackSettings()).needs_losses
    assert LossSpikeDetector(RollbackSettings(spike_zscore=3.0)).needs_losses


def test_a_detector_continues_from_what_another_saw() -> None:
    settings = RollbackSettings(max_nonfinite_steps=2, spike_zscore=2.0, spike_window=3)
    before, after = LossSpikeDetector(settings), LossSpikeDetector(settings)
    for loss in (1.0, 1.1, 1.05, 1.02):
        before.problem(loss, False)
    before.problem(None, True)
    after.load_state(after_json(before.state()))
    assert after.state() == before.state()
    for detector in (before, after):
        assert detector.problem(50.0, True) == "2 steps in a row whose loss or gradient was not finite"
        assert detector.problem(50.0, False) is not None


def test_a_state_of_nothing_is_a_new_detectors() -> None:
    settings = RollbackSettings(max_nonfinite_steps=2, spike_zscore=2.0, spike_window=3)
    detector = LossSpikeDetector(settings)
    detector.problem(1.0, True)
    detector.load_state(None)
    assert detector.state() == LossSpikeDetector(settings).state()


def test_after_a_rollback_the_count_begins_anew_and_a_spike_is_still_one() -> None:
    detector = LossSpikeDetector(RollbackSettings(max_nonfinite_steps=2, spike_zscore=2.0, spike_window=2))
    for loss in (1.0, 1.1):
        detector.problem(loss, False)
    detector.problem(None, True)
    detector.after_rollback()
    assert detector.problem(None, True) is None
    assert detector.problem(50.0, False) is not None
