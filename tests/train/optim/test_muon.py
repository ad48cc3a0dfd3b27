"""Muon steps as torch's does, alone and shared by ranks, beside AdamW for what is not a matrix of a block."""

from pathlib import Path

import pytest
import torch

import malmoi.train.optim.muon
from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.train.models import MODELS
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.optim.lr_schedule import set_learning_rate
from malmoi.train.optim.muon import Muon, MuonWithAdamW, orthogonalized
from tests.train.ranks import on_two_ranks
from tests.train.training_models import new_gpt2


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (64, 16)])
def test_the_step_is_that_of_torchs_muon_in_bf16(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malmoi.train.optim.muon, "has_fast_bf16", lambda device: True)
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
    of_one = Muon([{"params": [together], "num_matrices": 3}], lr=0.02, weight_decay=0.1, momentum=0.95)
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
    groups = [{"params": matrices[:1], "num_matrices": 3}, {"params": matrices[1:]}]
    muon = Muon(groups, lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape)
        muon.step()
    return [matrix.detach() for matrix in matrices]


def step_on_a_rank(rank: int, folder: Path) -> None:
    done = []
    malmoi.train.optim.muon.orthogonalized = lambda matrix, dtype: (
        done.append(tuple(matrix.shape)) or orthogonalized(matrix, dtype)
    )  # type: ignore[func-returns-value]
    torch.save({"matrices": stepped(3), "done": done}, folder / f"rank-{rank}.pt")


def test_ranks_that_share_the_work_take_the_step_of_one_bit_for_bit(tmp_path: Path) -> None:
    on_two_ranks(step_on_a_rank, tmp_path)
    alone = stepped(3)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    for rank in ranks:
        assert all(torch.equal(ours, its) for ours, its in zip(alone, rank["matrices"], strict=True))
    assert len(ranks[0]["done"]) + len(ranks[1]["done"]) == 3 * (len(SHAPES) + 2), "the first is three matrices"
    assert ranks[0]["done"] and ranks[1]["done"]


def new_muon(model: TrainingGPT2, lr: float = 6e-4) -> MuonWithAdamW:
    settings = OptimSettings(name="muon", lr=lr)
    optimizer = OPTIMIZERS["muon"].build(MODELS["gpt2"].param_groups(model), settings, torch.device("cpu"))
    assert isinstance(optimizer, MuonWithAdamW)
    return optimizer


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = new_gpt2(ModelSettings(n_layer=2, n_head=1, n_embd=8, block_size=4), 10, 0)
    optimizer = new_muon(model)
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
    shape = ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=4)
    together, apart = new_gpt2(shape, 10, 0), new_gpt2(shape, 10, 0)
    ours = new_muon(together, lr=0.02)
    matrices = [p for n, p in apart.named_parameters() if ".h." in n and p.dim() == 2 and "c_attn" not in n]
    attention = [p for n, p in apart.named_parameters() if n.endswith("c_attn.weight")]
    others = [p for n, p in apart.named_parameters() if not (".h." in n and p.dim() == 2)]
    groups = [{"params": attention, "num_matrices": 3}, {"params": matrices}]
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
    for step in range(3):
        for model in (together, apart):
            model(input_ids=ids, labels=ids).loss.backward()
        set_learning_rate(ours, 0.02 * 0.9**step)
        for number, group in enumerate((*muon.param_groups, *adamw.param_groups)):
            group["lr"] = (1, 1, 3, 1)[number] * (0.02 * 0.9**step)
        for optimizer in (ours, muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other)
