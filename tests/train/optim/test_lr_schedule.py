"""The learning rate is a pure function of the step."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from malmoi.configs.optim import OptimSettings, ScheduleName, ScheduleSettings
from malmoi.errors import UserError
from malmoi.train.optim import SCHEDULES
from malmoi.train.optim.lr_schedule import learning_rate, set_learning_rate

OPTIM = OptimSettings(lr=1.0)
SETTINGS = ScheduleSettings(warmup_steps=10, min_lr_ratio=0.1)


def rates_of(schedule: ScheduleSettings, max_steps: int, optim: OptimSettings = OPTIM) -> list[float]:
    """Return the learning rate of every step."""
    return [learning_rate(step, max_steps, optim, schedule) for step in range(max_steps)]


def test_the_settings_name_the_registrys_entries() -> None:
    literal, other = get_args(ScheduleName)
    assert set(get_args(literal)) == set(SCHEDULES)
    assert other is str, "a plugin may register others"


def test_an_unknown_schedule_is_an_error_that_names_the_known_ones() -> None:
    unknown = replace(SETTINGS, name="cosin", warmup_steps=0)
    with pytest.raises(UserError, match=r"schedule\.name cosin: no entry of that name.*cosine, linear, wsd, constant"):
        learning_rate(0, 10, OPTIM, unknown)


def test_the_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    rates = rates_of(SETTINGS, 100)
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


@pytest.mark.parametrize(("name", "halfway"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_each_schedule_has_its_shape(name: str, halfway: float) -> None:
    rates = rates_of(ScheduleSettings(name, warmup_steps=0, min_lr_ratio=0.0), 101)
    assert rates[50] == pytest.approx(halfway)
    quarter = {"cosine": 0.5 + 0.5 * math.cos(math.pi / 4), "linear": 0.75, "constant": 1.0}[name]
    assert rates[25] == pytest.approx(quarter)


ANY_SCHEDULE = st.builds(
    ScheduleSettings,
    name=st.sampled_from(list(SCHEDULES)),
    min_lr_ratio=st.floats(0, 1),
    decay_ratio=st.floats(0, 1),
    warmup_steps=st.integers(0, 60),
)
ANY_OPTIMIZER = st.builds(OptimSettings, lr=st.floats(1e-6, 1))


@given(ANY_OPTIMIZER, ANY_SCHEDULE, st.integers(1, 300))
@settings(deadline=None)
def test_every_schedule_rises_in_a_line_then_never_rises_again(
    optim: OptimSettings, schedule: ScheduleSettings, max_steps: int
) -> None:
    rates = rates_of(schedule, max_steps, optim)
    peak, warmup = optim.lr, schedule.warmup_steps
    for step, rate in enumerate(rates[:warmup]):
        assert rate == pytest.approx(peak * (step + 1) / warmup)
    assert rates[warmup:][:1] in ([], [peak])
    assert all(later <= earlier for earlier, later in pairwise(rates[warmup:]))
    assert all(peak * schedule.min_lr_ratio * 0.999999 <= rate <= peak for rate in rates[warmup:])
    if schedule.name in ("cosine", "linear") and max_steps > warmup + 1:
        assert rates[-1] == pytest.approx(peak * schedule.min_lr_ratio)


@given(ANY_OPTIMIZER, ANY_SCHEDULE, st.integers(2, 400))
@settings(deadline=None)
def test_wsd_stays_at_its_peak_and_then_falls_in_a_line_to_its_end(
    optim: OptimSettings, schedule: ScheduleSettings, max_steps: int
) -> None:
    wsd = replace(schedule, name="wsd", warmup_steps=0)
    rates = rates_of(wsd, max_steps, optim)
    decay_steps = min(round(wsd.decay_ratio * max_steps), max_steps - 1)
    assert all(rate == optim.lr for rate in rates[: max_steps - decay_steps])
    drops = [earlier - later for earlier, later in pairwise(rates[max_steps - decay_steps - 1 :])]
    assert len(drops) == decay_steps
    end = wsd.min_lr_ratio if decay_steps else 1.0
    assert rates[-1] == pytest.approx(optim.lr * end)
    assert all(drop == pytest.approx(drops[0], abs=1e-12) for drop in drops)


def test_a_wsd_run_made_longer_has_had_the_same_rates_until_it_would_have_decayed() -> None:
    wsd = replace(SETTINGS, name="wsd", decay_ratio=0.2)
    short, long = (rates_of(wsd, max_steps) for max_steps in (100, 1000))
    assert short[:80] == long[:80]
    assert short[85] < long[85]


def test_a_warmup_that_reaches_into_the_decay_still_gets_to_the_peak() -> None:
    rates = rates_of(ScheduleSettings("wsd", warmup_steps=50, decay_ratio=0.9, min_lr_ratio=0.0), 61)
    assert rates[49] == rates[50] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[60] == 0.0


def test_a_group_with_a_factor_gets_a_multiple_of_the_rate() -> None:
    one, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other], "lr_factor": 3.0}], lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.5]
