import pytest
import torch

from train.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (64, 16)])
def test_the_update_is_that_of_torchs_muon_in_bf16(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.muon.has_fast_bf16", lambda device: True)
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    our_muon = Muon([ours], lr=0.02, weight_decay=0.1, momentum=0.95)
    their_muon = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        our_muon.step()
        their_muon.step()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_singular_values_come_near_one_in_fp32(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape), torch.float32))
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3


def test_the_gradient_is_left_as_it_was() -> None:
    gradient = torch.randn(8, 8)
    before = gradient.clone()
    orthogonalized(gradient, torch.float32)
    assert torch.equal(gradient, before)
