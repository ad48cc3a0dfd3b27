"""A number that cannot be is refused by its name, before anything is trained; those of every preset can."""

from dataclasses import replace

import pytest

from configs.command_line import parse_settings, preset_names
from configs.errors import BadInput
from configs.schema import DivergenceSettings, RunSettings, TrainSettings
from train.ranges import check_ranges

INFINITE, NO_NUMBER = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("decay_share", 1.5, "choose a share"),
        ("final_learning_rate", -0.1, "choose a share"),
        ("warmup_steps", -1, "choose 0 or more"),
        ("learning_rate", -1.0, "choose a number from 0 that is not infinite"),
        ("learning_rate", INFINITE, "choose a number from 0 that is not infinite"),
        ("learning_rate", NO_NUMBER, "choose a number from 0 that is not infinite"),
        ("weight_decay", -1.0, "choose a number from 0"),
        ("epsilon", -1.0, "choose a number from 0"),
        ("beta1", 1.0, "choose 0 or more, and less than 1"),
        ("beta2", -0.1, "choose 0 or more, and less than 1"),
        ("clip_norm", -1.0, "choose 0 or more"),
        ("clip_norm", NO_NUMBER, "choose 0 or more"),
        ("micro_batch", 0, "choose 1 or more"),
        ("global_batch", 0, "choose 1 or more"),
        ("log_every", 0, "choose 1 or more"),
        ("keep_last", 0, "choose 1 or more"),
        ("evaluate_tokens", 0, "choose 1 or more"),
        ("save_every", -1, "choose 0 or more"),
        ("evaluate_every", -1, "choose 0 or more"),
        ("keep_best", -1, "choose 0 or more"),
        ("seed", -1, "choose 0 or more"),
    ],
)
def test_a_number_that_cannot_be_is_named_with_what_it_may_be(name: str, value: float, remedy: str) -> None:
    with pytest.raises(BadInput, match=rf"^train\.{name} {value}: {remedy}"):
        check_ranges(replace(TrainSettings(), **{name: value}))


@pytest.mark.parametrize(
    ("name", "value"), [("nonfinite_steps", -1), ("spike_deviations", -1.0), ("spike_window", 1), ("rollbacks", -1)]
)
def test_so_is_one_of_divergence(name: str, value: float) -> None:
    with pytest.raises(BadInput, match=rf"^train\.divergence\.{name} {value}: choose [02] or more"):
        check_ranges(TrainSettings(divergence=replace(DivergenceSettings(), **{name: value})))


@pytest.mark.parametrize("preset", preset_names())
def test_the_numbers_of_every_preset_can_be(preset: str) -> None:
    check_ranges(parse_settings(RunSettings, ["--config", preset], "", "").train)
