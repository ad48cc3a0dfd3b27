"""The loss in chunks is the plain loss, and never holds all logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.schema import ModelSettings
from train import chunked_loss
from train.chunked_loss import OutputMatrix, add_product, chunk_of
from train.documents import NOT_COUNTED
from train.model import SpecialTokenIds, new_model
from train.objective import next_token_nats

WIDTH, PADDED, VOCABULARY = 16, 128, 100


def head(dtype: torch.dtype = torch.float32) -> OutputMatrix:
    torch.manual_seed(1)
    return OutputMatrix(WIDTH, PADDED, bias=False).to(dtype)


def loss_and_gradients(nats: Tensor, *of: Tensor) -> tuple[float, list[Tensor]]:
    return float(nats.detach()), list(torch.autograd.grad(nats / 7, of))


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
    targets[torch.rand(rows, positions) < left_out] = NOT_COUNTED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_loss, "loss_positions", lambda vocab_size, device_type: chunk)
        ours = loss_and_gradients(matrix(hidden, targets, VOCABULARY), hidden, matrix.weight)
    plain = loss_and_gradients(next_token_nats(matrix(hidden), targets, VOCABULARY), hidden, matrix.weight)
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
        patch.setattr(chunked_loss, "PRODUCT_ELEMENTS", at_once)
        add_product(total, left, right)
    # Products of few numbers: another order of summation rounds some to the neighbour in 16 bits.
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(total - before, (left @ right).float(), rtol=rounding, atol=1e-5)


@given(positions=st.integers(1, 10_000), most=st.integers(1, 3_000))
def test_chunks_are_alike_where_that_takes_no_more_than_twice_as_many(positions: int, most: int) -> None:
    size = chunk_of(positions, most)
    assert most / 2 < size <= most
    if any(positions % other == 0 for other in range(most // 2 + 1, most + 1)):
        assert positions % size == 0


def test_a_target_that_has_almost_no_probability_costs_what_it_costs_in_plain() -> None:
    matrix = head()
    with torch.no_grad():
        matrix.weight[3] = 100.0
    hidden = torch.full((1, 4, WIDTH), 1.0, requires_grad=True)
    targets = torch.tensor([[0, 1, 2, 3]])
    nats = matrix(hidden, targets, VOCABULARY)
    plain = next_token_nats(matrix(hidden), targets, VOCABULARY)
    assert float(nats.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    assert float(nats.detach()) > 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_equals_the_plain_loss_within_half_precision(dtype: torch.dtype) -> None:
    matrix = head()
    hidden = torch.randn(2, 30, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (2, 30))
    with torch.autocast("cpu", dtype):
        ours = loss_and_gradients(matrix(hidden, targets, VOCABULARY), hidden, matrix.weight)
        plain = loss_and_gradients(next_token_nats(matrix(hidden), targets, VOCABULARY), hidden, matrix.weight)
    assert ours[0] == pytest.approx(plain[0], rel=1e-3)
    for one, other in zip(ours[1], plain[1], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01 * float(other.abs().max()))


def test_weights_in_half_precision_get_gradients_in_it() -> None:
    matrix = head(torch.bfloat16)
    hidden = torch.randn(1, 9, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    nats = matrix(hidden, torch.zeros(1, 9, dtype=torch.int64), VOCABULARY)
    nats.backward()
    assert nats.dtype == torch.float32
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert matrix.weight.grad is not None and matrix.weight.grad.dtype == torch.bfloat16


def test_no_tensor_of_a_step_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "loss_positions", lambda vocab_size, device_type: 8)
    shape = ModelSettings(n_layer=1, n_head=1, n_embd=WIDTH, block_size=64)
    model = new_model(shape, 5_000, SpecialTokenIds(0, 1, 2, 3), 0)
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
        next_token_nats(model(ids, use_cache=False).logits, ids, 5_000).backward()
    assert plain.elements >= 4 * 64 * 5_000
    assert ours.elements < 4 * 64 * 5_000 / 2


def test_without_gradients_none_are_computed() -> None:
    matrix = head()
    with torch.no_grad():
        nats = matrix(torch.randn(1, 5, WIDTH), torch.zeros(1, 5, dtype=torch.int64), VOCABULARY)
    assert not nats.requires_grad
