import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import ModelSettings, Schedule, TrainSettings
from train.model import SpecialTokenIds, new_model
from train.muon import Muon
from train.optim import MuonWithAdamW, learning_rate, new_optimizer, set_learning_rate

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


SCHEDULES = st.builds(
    TrainSettings,
    schedule=st.sampled_from(get_args(Schedule)),
    learning_rate=st.floats(1e-6, 1),
    final_learning_rate=st.floats(0, 1),
    decay_share=st.floats(0, 1),
    warmup_steps=st.integers(0, 60),
)


@given(SCHEDULES, st.integers(1, 300))
@settings(deadline=None)
def test_every_schedule_rises_in_a_line_then_never_rises_again(schedule: TrainSettings, updates: int) -> None:
    rates = [learning_rate(update, updates, schedule) for update in range(updates)]
    peak, warm = schedule.learning_rate, schedule.warmup_steps
    for update, rate in enumerate(rates[:warm]):
        assert rate == pytest.approx(peak * (update + 1) / warm)
    assert rates[warm:][:1] in ([], [peak])
    assert all(later <= earlier for earlier, later in pairwise(rates[warm:]))
    assert all(peak * schedule.final_learning_rate * 0.999999 <= rate <= peak for rate in rates[warm:])
    if schedule.schedule in ("cosine", "linear") and updates > warm + 1:
        assert rates[-1] == pytest.approx(peak * schedule.final_learning_rate)


@given(SCHEDULES, st.integers(2, 400))
@settings(deadline=None)
def test_wsd_stays_at_its_peak_and_then_falls_in_a_line_to_its_end(schedule: TrainSettings, updates: int) -> None:
    wsd = replace(schedule, schedule="wsd", warmup_steps=0)
    rates = [learning_rate(update, updates, wsd) for update in range(updates)]
    decaying = min(round(wsd.decay_share * updates), updates - 1)
    assert all(rate == wsd.learning_rate for rate in rates[: updates - decaying])
    drops = [earlier - later for earlier, later in pairwise(rates[updates - decaying - 1 :])]
    assert len(drops) == decaying
    end = wsd.final_learning_rate if decaying else 1.0
    assert rates[-1] == pytest.approx(wsd.learning_rate * end)
    assert all(drop == pytest.approx(drops[0], abs=1e-12) for drop in drops)


def test_a_wsd_run_made_longer_has_had_the_same_rates_until_it_would_have_decayed() -> None:
    wsd = replace(SETTINGS, schedule="wsd", decay_share=0.2)
    short, long = ([learning_rate(update, updates, wsd) for update in range(80)] for updates in (100, 1000))
    assert short == long
    assert learning_rate(85, 100, wsd) < learning_rate(85, 1000, wsd)


def test_a_warm_up_that_reaches_into_the_decay_still_gets_to_the_peak() -> None:
    wsd = replace(SETTINGS, schedule="wsd", decay_share=0.9, warmup_steps=50, final_learning_rate=0.0)
    rates = [learning_rate(update, 61, wsd) for update in range(61)]
    assert rates[49] == rates[50] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[60] == 0.0


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    model = new_model(ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=4), 10, SpecialTokenIds(0, 1, 2, 3), 0)
    decaying, rest = new_optimizer(model, TrainSettings(weight_decay=0.1), torch.device("cpu")).param_groups
    assert decaying["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert {p.dim() for p in decaying["params"]} == {2}
    assert {p.dim() for p in rest["params"]} == {1}
    assert len(decaying["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = new_model(ModelSettings(n_layer=2, n_head=1, n_embd=8, block_size=4), 10, SpecialTokenIds(0, 1, 2, 3), 0)
    optimizer = new_optimizer(model, TrainSettings(optimizer="muon"), torch.device("cpu"))
    assert isinstance(optimizer, MuonWithAdamW)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_muon = {names[parameter] for group in optimizer.muon.param_groups for parameter in group["params"]}
    assert by_muon == {
        name
        for name in names.values()
        if ".h." in name and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    }
    by_adamw = {names[parameter] for group in optimizer.adamw.param_groups for parameter in group["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw


def test_muon_and_adamw_step_as_they_do_apart_the_embeddings_at_three_times_the_rate() -> None:
    shape, special = ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=4), SpecialTokenIds(0, 1, 2, 3)
    settings = TrainSettings(optimizer="muon", learning_rate=0.02)
    together, apart = new_model(shape, 10, special, 0), new_model(shape, 10, special, 0)
    ours = new_optimizer(together, settings, torch.device("cpu"))
    matrices = [p for n, p in apart.named_parameters() if ".h." in n and p.dim() == 2 and "c_attn" not in n]
    attention = [p for n, p in apart.named_parameters() if n.endswith("c_attn.weight")]
    others = [p for n, p in apart.named_parameters() if not (".h." in n and p.dim() == 2)]
    groups = [{"params": attention, "parts": 3}, {"params": matrices}]
    muon = Muon(groups, lr=0.02, weight_decay=0.1, momentum=0.95)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.dim() > 1], "weight_decay": 0.1, "lr": 3 * 0.02},
            {"params": [p for p in others if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=0.02,
        betas=(0.9, 0.95),
        fused=True,
    )
    ids = torch.randint(0, 10, (2, 4))
    for update in range(3):
        for model in (together, apart):
            model(input_ids=ids, labels=ids).loss.backward()
        set_learning_rate(ours, 0.02 * 0.9**update)
        for number, group in enumerate((*muon.param_groups, *adamw.param_groups)):
            group["lr"] = (1, 1, 3, 1)[number] * (0.02 * 0.9**update)
        for optimizer in (ours, muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other)
