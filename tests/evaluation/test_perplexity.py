import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from malmoi.evaluation.evaluate import TokenArray
from malmoi.evaluation.perplexity import LossSum, Windows, format_perplexity, perplexity_result, sum_window_losses

VOCABULARY, PADDED, BLOCK = 50, 56, 8


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=PADDED, n_positions=BLOCK, n_embd=16, n_layer=2, n_head=2))
    torch.nn.init.normal_(model.transformer.wte.weight, std=1.0)
    return model.eval()


def loss_sum(model: GPT2LMHeadModel, ids: np.ndarray, stride: int, batch_size: int = 3) -> LossSum:
    windows = Windows(len(ids), BLOCK, stride)
    with torch.no_grad():
        return sum_window_losses(
            lambda batch_ids: model(input_ids=batch_ids).logits,
            TokenArray(ids),
            windows,
            range(len(windows)),
            batch_size,
            VOCABULARY,
            torch.device("cpu"),
        )


def plain_loss_sum(model: GPT2LMHeadModel, ids: np.ndarray, stride: int) -> float:
    """One target at a time, in float64, with the context of the first window that reaches it."""
    total, start = 0.0, 0
    for target in range(1, len(ids)):
        while target > start + BLOCK:
            start += stride
        context = torch.from_numpy(ids[start:target].astype(np.int64))[None]
        with torch.no_grad():
            logits = model(input_ids=context).logits[0, -1, :VOCABULARY].double()
        total -= float(torch.log_softmax(logits, 0)[int(ids[target])])
    return total


@pytest.mark.parametrize("stride", [1, 3, BLOCK])
@pytest.mark.parametrize("length", [2, BLOCK, BLOCK + 1, BLOCK + 2, 29])
def test_the_loss_equals_a_plain_reference(model: GPT2LMHeadModel, length: int, stride: int) -> None:
    ids = np.random.default_rng(length).integers(0, VOCABULARY, length).astype(np.int32)
    measured = loss_sum(model, ids, stride)
    assert measured.num_tokens == length - 1
    assert measured.loss_sum == pytest.approx(plain_loss_sum(model, ids, stride), rel=1e-5)


@given(tokens=st.integers(0, 200), block_size=st.integers(1, 20), data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_target_is_counted_once(tokens: int, block_size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, block_size))
    windows = Windows(tokens, block_size, stride)
    counted: list[int] = []
    for index in range(len(windows)):
        start, length, count = windows.span(index)
        assert 0 <= start < start + length <= tokens
        assert length <= block_size + 1
        counted += range(start + length - count, start + length)
    assert counted == list(range(1, tokens))


def test_bits_per_byte_are_bits_over_bytes_of_text() -> None:
    whole = perplexity_result(LossSum(loss_sum=math.log(2) * 300, num_tokens=100), stream_tokens=101, text_bytes=400)
    assert whole.bits_per_byte == pytest.approx(300 / 400)
    assert whole.loss == pytest.approx(math.log(2) * 3)
    assert whole.perplexity == pytest.approx(8.0)
    part = perplexity_result(LossSum(loss_sum=math.log(2) * 150, num_tokens=50), stream_tokens=101, text_bytes=400)
    assert part.bits_per_byte == pytest.approx(whole.bits_per_byte)
    assert part.bytes == 200


def test_a_perplexity_that_no_float_holds_is_infinite_and_a_large_one_is_shown_in_few_digits() -> None:
    shown = [
        format_perplexity(perplexity_result(LossSum(loss, 1), stream_tokens=2, text_bytes=4).perplexity)
        for loss in (math.log(1234.5), 300.0, 5351.0, math.nan)
    ]
    assert shown == ["1,234.5", "1.94e+130", "inf", "nan"]
