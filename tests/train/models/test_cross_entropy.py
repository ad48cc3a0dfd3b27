"""The loss in chunks is the plain loss, and never holds all logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from malmoi.configs.model import ModelSettings
from malmoi.train.models import cross_entropy
from malmoi.train.models.cross_entropy import OutputMatrix, add_product, equal_chunk, plain_loss_sum
from malmoi.train.models.spec import IGNORE_INDEX
from tests.train.training_models import new_gpt2

WIDTH, PADDED, VOCABULARY = 16, 128, 100


def head(dtype: torch.dtype = torch.float32) -> OutputMatrix:
    torch.manual_seed(1)
    return OutputMatrix(WIDTH, PADDED, bias=False).to(dtype)


def loss_and_gradients(loss_sum: Tensor, *of: Tensor) -> tuple[float, list[Tensor]]:
    return float(loss_sum.detach()), list(torch.autograd.grad(loss_sum / 7, of))


def test_the_loss_is_the_sum_of_negative_log_probabilities_over_the_real_vocabulary() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 64), torch.randint(0, 50, (2, 5))
    expected = 0.0
    for row in range(2):
        for position in range(5):
            exponentials = logits[row, position, :50].double().exp()
            expected -= float((exponentials[targets[row, position]] / exponentials.sum()).log())
    assert abs(float(plain_loss_sum(logits, targets, 50)) - expected) < 1e-4


def test_padding_rows_of_the_vocabulary_get_no_gradient() -> None:
    logits = torch.randn(1, 3, 64, requires_grad=True)
    plain_loss_sum(logits, torch.zeros(1, 3, dtype=torch.int64), 50).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 50:] == 0).all()
    assert (logits.grad[..., :50] != 0).any()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits = torch.randn(4, 8, 64).bfloat16()
    assert plain_loss_sum(logits, torch.zeros(4, 8, dtype=torch.int64), 64).dtype == torch.float32


@given(
    rows=st.integers(1, 5),
    positions=st.integers(1, 40),
    chunk=st.integers(1, 64),
    left_out=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=100)
def test_loss_and_gradients_equal_the_plain_ones_however_positions_fall_into_chunks(
    rows: int, positions: int, chunk: int, left_out: float, seed: int
) -> None:
    matrix = head()
    torch.manual_seed(seed)
    hidden = torch.randn(rows, positions, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (rows, positions))
    targets[torch.rand(rows, positions) < left_out] = IGNORE_INDEX
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "chunk_positions", lambda vocab_size, device_type: chunk)
        ours = loss_and_gradients(matrix(hidden, targets, VOCABULARY), hidden, matrix.weight)
    plain = loss_and_gradients(plain_loss_sum(matrix(hidden), targets, VOCABULARY), hidden, matrix.weight)
    assert ours[0] == pytest.approx(plain[0], rel=1e-6)
    for one, other in zip(ours[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@given(rows=st.integers(1, 60), between=st.integers(1, 9), columns=st.integers(1, 40), at_once=st.integers(1, 500))
@settings(deadline=None, max_examples=50)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_added_as_a_whole_one_would_be_however_few_rows_are_held(
    dtype: torch.dtype, rows: int, between: int, columns: int, at_once: int
) -> None:
    torch.manual_seed(rows)
    left, right = torch.randn(between, rows).T.to(dtype), torch.randn(between, columns).to(dtype)
    before = torch.randn(rows, columns)
    total = before.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "PRODUCT_ELEMENTS", at_once)
        add_product(total, left, right)
    # Products of few numbers: another order of summation rounds some to the neighbor in 16 bits.
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(total - before, (left @ right).float(), rtol=rounding, atol=1e-5)


@given(positions=st.integers(1, 10_000), most=st.integers(1, 3_000))
def test_chunks_are_alike_where_that_takes_no_more_than_twice_as_many(positions: int, most: int) -> None:
    size = equal_chunk(positions, most)
    assert most / 2 < size <= most
    if any(positions % other == 0 for other in range(most // 2 + 1, most + 1)):
        assert positions % size == 0


def test_a_target_that_has_almost_no_probability_costs_what_it_costs_in_plain() -> None:
    matrix = head()
    with torch.no_grad():
        matrix.weight[3] = 100.0
    hidden = torch.full((1, 4, WIDTH), 1.0, requires_grad=True)
    targets = torch.tensor([[0, 1, 2, 3]])
    loss_sum = matrix(hidden, targets, VOCABULARY)
    plain = plain_loss_sum(matrix(hidden), targets, VOCABULARY)
    assert float(loss_sum.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    assert float(loss_sum.detach()) > 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_equals_the_plain_loss_within_half_precision(dtype: torch.dtype) -> None:
    matrix = head()
    hidden = torch.randn(2, 30, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (2, 30))
    with torch.autocast("cpu", dtype):
        ours = loss_and_gradients(matrix(hidden, targets, VOCABULARY), hidden, matrix.weight)
        plain = loss_and_gradients(plain_loss_sum(matrix(hidden), targets, VOCABULARY), hidden, matrix.weight)
    assert ours[0] == pytest.approx(plain[0], rel=1e-3)
    for one, other in zip(ours[1], plain[1], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01 * float(other.abs().max()))


def test_weights_in_half_precision_get_gradients_in_it() -> None:
    matrix = head(torch.bfloat16)
    hidden = torch.randn(1, 9, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    loss_sum = matrix(hidden, torch.zeros(1, 9, dtype=torch.int64), VOCABULARY)
    loss_sum.backward()
    assert loss_sum.dtype == torch.float32
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert matrix.weight.grad is not None and matrix.weight.grad.dtype == torch.bfloat16


def test_no_tensor_of_a_step_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_positions", lambda vocab_size, device_type: 8)
    shape = ModelSettings(n_layer=1, n_head=1, n_embd=WIDTH, block_size=64)
    model = new_gpt2(shape, 5_000, 0)
    ids = torch.randint(0, 5_000, (4, 64))

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                self.elements = max(self.elements, made.numel())
            return made

    with Largest() as ours:
        model(ids, ids, 5_000).backward()
    with Largest() as plain:
        plain_loss_sum(model(ids, use_cache=False).logits, ids, 5_000).backward()
    assert plain.elements >= 4 * 64 * 5_000
    assert ours.elements < 4 * 64 * 5_000 / 2


def test_without_gradients_none_are_computed() -> None:
    matrix = head()
    with torch.no_grad():
        loss_sum = matrix(torch.randn(1, 5, WIDTH), torch.zeros(1, 5, dtype=torch.int64), VOCABULARY)
    assert not loss_sum.requires_grad
