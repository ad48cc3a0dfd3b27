"""The fine-tuned model's head sees what comes before a token, and nothing else, whatever computes attention."""

import pytest
import torch

from malmoi.configs.model import ModelSettings
from malmoi.configs.train import Attention
from malmoi.train.models.classifier import GPT2WithClassifier, with_classifier
from tests.train.training_models import new_gpt2

SHAPE = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=16)


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> GPT2WithClassifier:
    attention: Attention = request.param
    made = with_classifier(GPT2WithClassifier, new_gpt2(SHAPE, 100, seed=1), "classification", 2, seed=2)
    made.set_attn_implementation(attention)
    return made.eval()


def test_no_token_sees_one_behind_it(model: GPT2WithClassifier) -> None:
    ids = torch.arange(4, 16)[None]
    changed = ids.clone()
    changed[0, 9:] = 50
    lengths = torch.tensor([12])
    _, before = model(ids, lengths, 1, with_lm_logits=True)
    _, after = model(changed, lengths, 1, with_lm_logits=True)
    assert torch.equal(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9:], after[0, 9:], atol=1e-3)


def test_padding_changes_no_score(model: GPT2WithClassifier) -> None:
    ids = torch.arange(4, 12)[None]
    lengths = torch.tensor([8])
    alone, _ = model(ids, lengths, 1, with_lm_logits=False)
    for filler in (1, 77):
        padded, _ = model(torch.nn.functional.pad(ids, (0, 5), value=filler), lengths, 1, with_lm_logits=False)
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)
