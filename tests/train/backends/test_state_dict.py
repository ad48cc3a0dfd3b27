"""The optimizer step that most backends share is torch's own: clip, then step, and skip what is not finite."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from malmoi.configs.optim import OptimSettings
from malmoi.errors import UserError
from malmoi.train.backends.loss_scale import LossScaleState
from malmoi.train.backends.state_dict import clip_and_step, load_state_tensors, require_declared_state, state_tensors
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.optim.adamw import adamw

CPU = torch.device("cpu")
Made = tuple[nn.Module, torch.optim.Optimizer]


def fused(settings: OptimSettings) -> Made:
    """As a run has it: torch's fused kernel clips, and decides whether to skip."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))
    return model, adamw(list(model.parameters()), settings, CPU)


def plain(settings: OptimSettings) -> Made:
    """Its twin, an AdamW that is not fused: the host clips and decides."""
    model, made = fused(settings)
    groups = [{**group, "fused": None} for group in made.param_groups]
    return model, torch.optim.AdamW(groups, fused=False)


def give_gradients(model: nn.Module, seed: int, factor: float) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = factor * torch.randn_like(parameter)


@pytest.mark.parametrize("scale", [None, LossScaleState(1024.0)], ids=["no scale", "fp16's scale"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("make", [fused, plain])
def test_an_optimizer_step_is_torchs_clipping_and_step(
    make: Callable[[OptimSettings], Made], max_grad_norm: float, scale: LossScaleState | None
) -> None:
    settings = OptimSettings(lr=0.1)
    ours, theirs = make(settings), plain(settings)
    for seed in range(4):
        give_gradients(ours[0], seed, scale.scale if scale else 1.0)
        give_gradients(theirs[0], seed, 1.0)
        result = clip_and_step(*ours, max_grad_norm, scale)
        norm = nn.utils.clip_grad_norm_(theirs[0].parameters(), max_grad_norm or torch.inf)
        theirs[1].step()
        assert result.grad_norm.value() == pytest.approx(float(norm), rel=1e-6)
        assert result.is_pending == (make is fused)
    for one, other in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert one.grad is None


@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
@pytest.mark.parametrize("make", [fused, plain])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(
    make: Callable[[OptimSettings], Made], wrong: float
) -> None:
    model, optimizer = make(OptimSettings())
    for seed in range(2):
        give_gradients(model, seed, 1.0)
        clip_and_step(model, optimizer, 1.0, None)
    before = {name: tensor.clone() for name, tensor in state_tensors(model, optimizer)}
    give_gradients(model, 2, 1.0)
    model[2].bias.grad[1] = wrong
    assert not torch.tensor(clip_and_step(model, optimizer, 1.0, None).grad_norm.value()).isfinite()
    after = dict(state_tensors(model, optimizer))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "step counters among them"
    give_gradients(model, 3, 1.0)
    clip_and_step(model, optimizer, 1.0, None)
    assert not torch.equal(before["model.0.weight"], model[0].weight), "the next one is not skipped"


@pytest.mark.parametrize("name", ["momentum_buffer.0.weight", "exp_avg.9.weight", "model.9.weight"])
def test_state_that_has_no_place_in_the_run_is_refused_and_nothing_is_loaded(name: str) -> None:
    """Of another optimizer, or of another model."""
    model, optimizer = fused(OptimSettings())
    give_gradients(model, 0, 1.0)
    clip_and_step(model, optimizer, 1.0, None)
    saved = {key: tensor.clone() + 1 for key, tensor in state_tensors(model, optimizer)}
    before = {key: tensor.clone() for key, tensor in state_tensors(model, optimizer)}
    with pytest.raises(UserError, match=f"the checkpoint holds {name}, which the model and optimizer of this run"):
        load_state_tensors(model, optimizer, OPTIMIZERS["adamw"], {**saved, name: torch.ones(5, 7)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in state_tensors(model, optimizer))
    load_state_tensors(model, optimizer, OPTIMIZERS["adamw"], saved)
    loaded = dict(state_tensors(model, optimizer))
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in loaded.items())


def test_state_that_an_optimizer_does_not_declare_is_refused_when_it_is_saved() -> None:
    """It could not be loaded."""
    model, optimizer = fused(OptimSettings())
    give_gradients(model, 0, 1.0)
    clip_and_step(model, optimizer, 1.0, None)
    require_declared_state(optimizer, OPTIMIZERS["adamw"])
    optimizer.state[model[0].weight]["surprise"] = torch.zeros(5, 7)
    with pytest.raises(TypeError, match="the optimizer keeps surprise, which its OptimizerSpec does not declare"):
        require_declared_state(optimizer, OPTIMIZERS["adamw"])


def test_an_optimizer_that_keeps_no_tensor_is_refused_when_it_is_saved() -> None:
    model, optimizer = plain(OptimSettings())
    optimizer.state[model[0].weight] = {"count": 3}
    with pytest.raises(TypeError, match=r"the optimizer keeps count of 0\.weight as int; keep it in a tensor"):
        list(state_tensors(model, optimizer))
