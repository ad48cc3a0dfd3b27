from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train.muon
from tests.train.ranks import on_two_ranks
from train.muon import Muon, orthogonalized, shared_out


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


def test_matrices_side_by_side_step_as_they_do_apart() -> None:
    torch.manual_seed(0)
    together = torch.nn.Parameter(torch.randn(16, 48))
    apart = [torch.nn.Parameter(part.detach().clone()) for part in together.chunk(3, 1)]
    of_one = Muon([{"params": [together], "parts": 3}], lr=0.02, weight_decay=0.1, momentum=0.95)
    of_three = Muon(apart, lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(3):
        together.grad = torch.randn(16, 48)
        for part, gradient in zip(apart, together.grad.chunk(3, 1), strict=True):
            part.grad = gradient.clone()
        of_one.step()
        of_three.step()
    assert torch.equal(together, torch.cat(apart, 1))
    assert list(of_one.state[together]) == ["momentum_buffer"]


def test_the_gradient_is_left_as_it_was() -> None:
    gradient = torch.randn(8, 8)
    before = gradient.clone()
    orthogonalized(gradient, torch.float32)
    assert torch.equal(gradient, before)


SHAPES = [(16, 48), (16, 16), (16, 64), (64, 16), (16, 48), (8, 8)]


def stepped(steps: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    groups = [{"params": matrices[:1], "parts": 3}, {"params": matrices[1:]}]
    muon = Muon(groups, lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape)
        muon.step()
    return [matrix.detach() for matrix in matrices]


def step_on_a_rank(rank: int, folder: Path) -> None:
    done = []
    train.muon.orthogonalized = lambda matrix, dtype: done.append(tuple(matrix.shape)) or orthogonalized(matrix, dtype)  # type: ignore[func-returns-value]
    torch.save({"matrices": stepped(3), "done": done}, folder / f"rank-{rank}.pt")


def test_ranks_that_share_the_work_take_the_step_of_one_bit_for_bit(tmp_path: Path) -> None:
    on_two_ranks(step_on_a_rank, tmp_path)
    alone = stepped(3)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    for rank in ranks:
        assert all(torch.equal(ours, its) for ours, its in zip(alone, rank["matrices"], strict=True))
    assert len(ranks[0]["done"]) + len(ranks[1]["done"]) == 3 * (len(SHAPES) + 2), "the first is three matrices"
    assert ranks[0]["done"] and ranks[1]["done"]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4096), st.integers(1, 4096)), max_size=40), st.integers(1, 9)
)
def test_no_rank_has_more_than_its_share_and_one_parameter(shapes: list[tuple[int, int, int]], ranks: int) -> None:
    owners = shared_out(shapes, ranks)
    costs = [parts * (2 * min(sides) ** 2 * max(sides) + min(sides) ** 3) for parts, *sides in shapes]
    work = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert max(work) <= sum(costs) / ranks + max(costs, default=0)
