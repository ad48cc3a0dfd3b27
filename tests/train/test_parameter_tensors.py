"""The update that most backends share is torch's own: clip, then step, and nothing where a gradient is not finite."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from configs.schema import TrainSettings
from train.loss_scale import LossScaleState
from train.optim import new_optimizer
from train.parameter_tensors import clip_and_step, parameter_tensors

CPU = torch.device("cpu")
Made = tuple[nn.Module, torch.optim.Optimizer]


def fused(settings: TrainSettings) -> Made:
    """As a run has it: torch's fused kernel clips, and decides whether to update."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))
    return model, new_optimizer(model, settings, CPU)


def plain(settings: TrainSettings) -> Made:
    """Its twin, an AdamW that is not fused: the host clips and decides."""
    model, made = fused(settings)
    groups = [{**group, "fused": None} for group in made.param_groups]
    return model, torch.optim.AdamW(groups, fused=False)


def give_gradients(model: nn.Module, seed: int, factor: float) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = factor * torch.randn_like(parameter)


@pytest.mark.parametrize("scale", [None, LossScaleState(1024.0)], ids=["no scale", "fp16's scale"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("make", [fused, plain])
def test_an_update_is_torchs_clipping_and_step(
    make: Callable[[TrainSettings], Made], clip_norm: float, scale: LossScaleState | None
) -> None:
    settings = TrainSettings(learning_rate=0.1)
    ours, theirs = make(settings), plain(settings)
    for seed in range(4):
        give_gradients(ours[0], seed, scale.scale if scale else 1.0)
        give_gradients(theirs[0], seed, 1.0)
        update = clip_and_step(*ours, clip_norm, scale)
        norm = nn.utils.clip_grad_norm_(theirs[0].parameters(), clip_norm or torch.inf)
        theirs[1].step()
        assert update.norm.value() == pytest.approx(float(norm), rel=1e-6)
        assert update.is_late == (make is fused)
    for one, other in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert one.grad is None


@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
@pytest.mark.parametrize("make", [fused, plain])
def test_an_update_whose_gradient_is_not_finite_changes_nothing(
    make: Callable[[TrainSettings], Made], wrong: float
) -> None:
    model, optimizer = make(TrainSettings())
    for seed in range(2):
        give_gradients(model, seed, 1.0)
        clip_and_step(model, optimizer, 1.0, None)
    before = {name: tensor.clone() for name, tensor in parameter_tensors(model, optimizer)}
    give_gradients(model, 2, 1.0)
    model[2].bias.grad[1] = wrong
    assert not torch.tensor(clip_and_step(model, optimizer, 1.0, None).norm.value()).isfinite()
    after = dict(parameter_tensors(model, optimizer))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "counters of steps among them"
    give_gradients(model, 3, 1.0)
    clip_and_step(model, optimizer, 1.0, None)
    assert not torch.equal(before["model.0.weight"], model[0].weight), "the next one is taken again"
