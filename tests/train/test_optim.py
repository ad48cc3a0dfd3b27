import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from configs.schema import ModelSettings, TrainSettings
from train.model import SpecialTokenIds, new_model
from train.optim import adamw, learning_rate

SETTINGS = TrainSettings(learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1)


def test_the_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    rates = [learning_rate(update, 100, SETTINGS) for update in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


@pytest.mark.parametrize(("schedule", "halfway"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_each_schedule_has_its_shape(schedule: str, halfway: float) -> None:
    settings = replace(SETTINGS, schedule=schedule, warmup_steps=0, final_learning_rate=0.0)
    assert learning_rate(50, 101, settings) == pytest.approx(halfway)
    quarter = {"cosine": 0.5 + 0.5 * math.cos(math.pi / 4), "linear": 0.75, "constant": 1.0}[schedule]
    assert learning_rate(25, 101, settings) == pytest.approx(quarter)


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    model = new_model(ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=4), 10, SpecialTokenIds(0, 1, 2, 3), 0)
    decaying, rest = adamw(model, TrainSettings(weight_decay=0.1), torch.device("cpu")).param_groups
    assert decaying["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert {p.dim() for p in decaying["params"]} == {2}
    assert {p.dim() for p in rest["params"]} == {1}
    assert len(decaying["params"]) + len(rest["params"]) == len(list(model.parameters()))
