"""Deferred initialization gives each weight, bit for bit, what it would have got."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, initialization

from malmoi.configs.model import ModelSettings
from malmoi.train.models import MODELS
from malmoi.train.models.deferred_init import DeferredInit
from malmoi.train.models.spec import padded_vocabulary
from tests.train.training_models import SPECIAL, new_gpt2

GPT2 = MODELS["gpt2"]
SHAPE = ModelSettings(n_layer=2, n_head=3, n_embd=33, block_size=31)
"""Sizes that are no multiple of 16, of which torch draws the last numbers twice."""
LONGER = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=64)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with fewer tokens and positions than are trained, in two files."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(8)
    config = GPT2Config(
        vocab_size=600, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


def loaded(theirs: Path) -> nn.Module:
    return GPT2.from_hf(theirs, LONGER, 650, SPECIAL, 3)


def classifier(theirs: Path) -> nn.Module:
    assert GPT2.classifier is not None
    return GPT2.classifier.build(GPT2.from_hf(theirs, LONGER, 650, SPECIAL, 3), "classification", 3, 4)


@pytest.mark.parametrize("build", [lambda _: new_gpt2(SHAPE, 500, 5), loaded, classifier])
def test_a_model_made_later_is_the_model_made_at_once(build: Callable[[Path], nn.Module], theirs: Path) -> None:
    at_once, next_number = build(theirs), torch.rand(())
    deferred = DeferredInit()
    with deferred:
        later = build(theirs)
    assert torch.equal(torch.rand(()), next_number), "the generator is where it would be"
    assert all(parameter.is_meta for parameter in later.parameters())
    for block in GPT2.blocks(later):
        deferred.make(block)
        assert not any(parameter.is_meta for parameter in block.parameters())
    assert later.transformer.wte.weight.is_meta  # type: ignore[union-attr]
    deferred.make(later)
    assert later.lm_head.weight is later.transformer.wte.weight  # type: ignore[union-attr]
    weights = later.state_dict()
    for name, tensor in at_once.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    assert [each.requires_grad for each in later.parameters()] == [each.requires_grad for each in at_once.parameters()]


def views_and_sums() -> Tensor:
    tensor = torch.empty(7, 5).uniform_(-1, 1)
    tensor[2].zero_()
    other = torch.empty(5).normal_()
    tensor[3] += other
    other.fill_(9.0)
    return tensor * 2 + torch.ones(7, 1)


def truncated() -> Tensor:
    return nn.init.trunc_normal_(torch.empty(40, 3), std=0.02)


def joined() -> Tensor:
    return torch.cat([nn.init.kaiming_uniform_(torch.zeros(4, 6)), torch.full((1, 6), 3.0)])


@pytest.mark.parametrize("make", [views_and_sums, truncated, joined])
def test_whatever_an_initialization_does_is_done_later_in_the_same_order(make: Callable[[], Tensor]) -> None:
    torch.manual_seed(2)
    expected, state = make(), torch.get_rng_state()
    torch.manual_seed(2)
    deferred = DeferredInit()
    with deferred:
        tensor = make()
    assert tensor.is_meta
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(deferred.value(tensor), expected)
    assert torch.equal(torch.get_rng_state(), state), "making it draws nothing from the generator"


def test_numbers_that_an_initialization_reads_are_refused_while_they_are_not_there() -> None:
    with DeferredInit(), pytest.raises(RuntimeError, match="meta"):
        torch.zeros(3).sum().item()


@pytest.mark.parametrize("module", [nn.init, initialization])
def test_an_initialization_that_cannot_be_deferred_is_refused(module: Any) -> None:
    """On the meta device torch's own does nothing, without a word."""
    with DeferredInit(), pytest.raises(NotImplementedError, match=r"orthogonal_: .*single, ddp, zero1 or zero2"):
        module.orthogonal_(torch.empty(3, 4))
    assert float(module.orthogonal_(torch.empty(4, 4)).det().abs()) == pytest.approx(1.0, abs=1e-5)


def test_a_padded_vocabulary_is_made_too() -> None:
    deferred = DeferredInit()
    with deferred:
        model = new_gpt2(SHAPE, 500, 5)
    assert len(deferred.value(model.transformer.wte.weight)) == padded_vocabulary(500)
