import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from configs.schema import ModelSettings
from inference.evaluate import TokenArray
from inference.score import Nats, Windows, nats_of_windows, readable_perplexity, score_of
from train.model import SpecialTokenIds, new_model

VOCABULARY, BLOCK = 50, 8


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    shape = ModelSettings(n_layer=2, n_head=2, n_embd=16, block_size=BLOCK)
    model = new_model(shape, VOCABULARY, SpecialTokenIds(0, 1, 2, 3), 0)
    torch.nn.init.normal_(model.transformer.wte.weight, std=1.0)
    return model.eval()


def nats(model: GPT2LMHeadModel, ids: np.ndarray, stride: int, batch: int = 3) -> Nats:
    windows = Windows(len(ids), BLOCK, stride)
    with torch.no_grad():
        return nats_of_windows(
            lambda batch_ids: model(input_ids=batch_ids).logits,
            TokenArray(ids),
            windows,
            range(len(windows)),
            batch,
            VOCABULARY,
            torch.device("cpu"),
        )


def plain_nats(model: GPT2LMHeadModel, ids: np.ndarray, stride: int) -> float:
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
def test_the_score_equals_a_plain_reference(model: GPT2LMHeadModel, length: int, stride: int) -> None:
    ids = np.random.default_rng(length).integers(0, VOCABULARY, length).astype(np.int32)
    measured = nats(model, ids, stride)
    assert measured.tokens == length - 1
    assert measured.nats == pytest.approx(plain_nats(model, ids, stride), rel=1e-5)


@given(tokens=st.integers(0, 200), block_size=st.integers(1, 20), data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_target_is_scored_once(tokens: int, block_size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, block_size))
    windows = Windows(tokens, block_size, stride)
    scored: list[int] = []
    for number in range(len(windows)):
        start, length, count = windows.span(number)
        assert 0 <= start < start + length <= tokens
        assert length <= block_size + 1
        scored += range(start + length - count, start + length)
    assert scored == list(range(1, tokens))


def test_bits_per_byte_are_bits_over_bytes_of_text() -> None:
    score = score_of(Nats(nats=math.log(2) * 300, tokens=100), stream_tokens=101, text_bytes=400)
    assert score.bits_per_byte == pytest.approx(300 / 400)
    assert score.loss == pytest.approx(math.log(2) * 3)
    assert score.perplexity == pytest.approx(8.0)
    part = score_of(Nats(nats=math.log(2) * 150, tokens=50), stream_tokens=101, text_bytes=400)
    assert part.bits_per_byte == pytest.approx(score.bits_per_byte)
    assert part.bytes == 200


def test_a_perplexity_that_no_float_holds_is_infinite_and_a_large_one_is_shown_in_few_digits() -> None:
    shown = [
        readable_perplexity(score_of(Nats(loss, 1), stream_tokens=2, text_bytes=4).perplexity)
        for loss in (math.log(1234.5), 300.0, 5351.0, math.nan)
    ]
    assert shown == ["1,234.5", "1.94e+130", "inf", "nan"]
