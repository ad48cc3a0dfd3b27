from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.errors import BadInput
from configs.schema import ModelSettings
from train.model import SpecialTokenIds, export_model, gpt2_config, new_model
from train.size import padded_vocabulary, parameter_count

SPECIAL = SpecialTokenIds(0, 1, 2, 3)
SMALL = ModelSettings(n_layer=2, n_head=2, n_embd=16, block_size=8)


def test_gpt2_small_has_its_published_number_of_parameters() -> None:
    assert parameter_count(ModelSettings(), 50257) == 124_439_808


def test_the_count_is_that_of_the_model() -> None:
    model = new_model(SMALL, 128, SPECIAL, 0)
    assert parameter_count(SMALL, 128) == sum(p.numel() for p in model.parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (new_model(SMALL, 100, SPECIAL, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_vocabulary_is_padded_for_training_and_exact_when_exported(tmp_path: Path) -> None:
    assert padded_vocabulary(100) == 128
    assert padded_vocabulary(128) == 128
    model = new_model(SMALL, 100, SPECIAL, 0).eval()
    assert model.get_input_embeddings().weight.shape[0] == 128
    export_model(model.state_dict(), model.config, 100, SPECIAL, tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 100, (2, 8))
    with torch.no_grad():
        assert exported(ids).logits.shape[-1] == 100
        assert torch.allclose(exported(ids).logits, model(ids).logits[..., :100], atol=1e-6)
    assert exported.generation_config.suppress_tokens == [SPECIAL.pad, SPECIAL.unk]
    assert exported.get_output_embeddings().weight is exported.get_input_embeddings().weight


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(BadInput, match=r"n_head 3 does not divide model.n_embd 16"):
        gpt2_config(ModelSettings(n_head=3, n_embd=16), 100, SPECIAL)
