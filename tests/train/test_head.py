"""The fine-tuned model's head sees what comes before a token, and nothing else, whatever computes attention."""

import pytest
import torch

from configs.schema import Attention, ModelSettings
from train.head import GPT2WithHead, with_head
from train.model import SpecialTokenIds, new_model

SHAPE = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=16)


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> GPT2WithHead:
    attention: Attention = request.param
    made = with_head(new_model(SHAPE, 100, SpecialTokenIds(0, 1, 2, 3), seed=1), "classification", 2, seed=2)
    made.set_attn_implementation(attention)
    return made.eval()


def test_no_token_sees_one_behind_it(model: GPT2WithHead) -> None:
    ids = torch.arange(4, 16)[None]
    changed = ids.clone()
    changed[0, 9:] = 50
    lengths = torch.tensor([12])
    _, before = model(ids, lengths, 1, with_text=True)
    _, after = model(changed, lengths, 1, with_text=True)
    assert torch.equal(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9:], after[0, 9:], atol=1e-3)


def test_padding_changes_no_score(model: GPT2WithHead) -> None:
    ids = torch.arange(4, 12)[None]
    lengths = torch.tensor([8])
    alone, _ = model(ids, lengths, 1, with_text=False)
    for filler in (1, 77):
        padded, _ = model(torch.nn.functional.pad(ids, (0, 5), value=filler), lengths, 1, with_text=False)
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)
