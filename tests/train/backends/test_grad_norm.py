"""Gradient norms at the size of a real model: right to fp32's precision, sharded or not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from malmoi.train.backends.grad_norm import ROW, sum_of_squares, total_norm
from tests.train.ranks import on_two_ranks

WIDTH, VOCABULARY = 768, 50_257


def real_gradients(vocabulary: int = VOCABULARY) -> list[Tensor]:
    """Of an embedding of GPT-2's width, a block's matrix, and vectors: fp32."""
    torch.manual_seed(0)
    shapes = ((vocabulary, WIDTH), (WIDTH, 4 * WIDTH), (WIDTH,), (3,))
    return [1e-3 * torch.randn(shape) for shape in shapes]


def exact_norm(gradients: list[Tensor]) -> float:
    return float(torch.stack([each.double().norm() for each in gradients]).norm())


def test_the_norm_of_a_real_embedding_is_exact_to_fp32() -> None:
    gradients = real_gradients()
    exact = exact_norm(gradients)
    assert float(total_norm(gradients)) == pytest.approx(exact, rel=2e-7)
    assert abs(float(torch.nn.utils.get_total_norm(gradients)) / exact - 1) > 1e-4, "torch sums exactly: use its norm"


@pytest.mark.parametrize("length", [0, 1, ROW - 1, ROW, ROW + 1, 3 * ROW + 7])
def test_every_element_counts_once(length: int) -> None:
    tensor = torch.randn(length)
    assert float(sum_of_squares(tensor)) == pytest.approx(float(tensor.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(wrong: float) -> None:
    gradients = [torch.ones(ROW + 5), torch.ones(3)]
    gradients[0][ROW + 2] = wrong
    assert not total_norm(gradients).isfinite()


def test_no_gradient_has_the_norm_0() -> None:
    assert float(total_norm([])) == 0.0


def sharded_norm(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    gradients = real_gradients(5_000)
    placed: list[Tensor] = [distribute_tensor(each, mesh, [Shard(0)]) for each in gradients[:3]]
    placed.append(DTensor.from_local(gradients[3], mesh, [Replicate()]))
    norm = total_norm(placed)
    assert float(norm) == pytest.approx(exact_norm(gradients), rel=2e-7)
    both = [torch.zeros(()) for _ in range(2)]
    distributed.all_gather(both, norm)
    assert both[0] == both[1]


def test_shards_on_two_ranks_have_the_norm_of_the_whole(tmp_path: Path) -> None:
    on_two_ranks(sharded_norm, tmp_path)
