"""GPT-2's registry entry says of the model what the model itself says, and its export is a plain GPT-2."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from malmoi.configs.model import ModelSettings
from malmoi.configs.train import TrainSettings
from malmoi.errors import UserError
from malmoi.train.models import MODELS
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.models.spec import padded_vocabulary
from tests.train.training_models import SPECIAL, new_gpt2

GPT2 = MODELS["gpt2"]
SMALL = ModelSettings(n_layer=2, n_head=2, n_embd=16, block_size=8)
REAL_SHAPES = [
    pytest.param(ModelSettings(), 50_257, id="small"),
    pytest.param(ModelSettings(n_layer=24, n_head=16, n_embd=1024), 50_257, id="medium"),
    pytest.param(ModelSettings(n_layer=36, n_head=20, n_embd=1280), 51_200, id="large"),
    pytest.param(ModelSettings(n_layer=3, n_head=1, n_embd=768, block_size=333), 50_257, id="other context"),
]


def on_meta(shape: ModelSettings, vocab_size: int) -> TrainingGPT2:
    """Return the model without memory for its weights, the vocabulary as it is."""
    with torch.device("meta"):
        model = GPT2.build(GPT2.config(shape, vocab_size, SPECIAL))
    assert isinstance(model, TrainingGPT2)
    return model


def test_gpt2_small_has_its_published_number_of_parameters() -> None:
    assert GPT2.num_params(ModelSettings(), 50257) == 124_439_808


@pytest.mark.parametrize(("shape", "vocab_size"), REAL_SHAPES)
@pytest.mark.parametrize("is_padded", [False, True])
def test_the_number_of_parameters_is_that_of_the_model(shape: ModelSettings, vocab_size: int, is_padded: bool) -> None:
    rows = padded_vocabulary(vocab_size) if is_padded else vocab_size
    model = on_meta(shape, rows)
    assert GPT2.num_params(shape, rows) == sum(parameter.numel() for parameter in model.parameters())
    # What is trained is all of it, each parameter once.
    listed = GPT2.param_groups(model)
    assert [each.name for each in listed] == [name for name, _ in model.named_parameters()]
    assert sum(each.tensor.numel() for each in listed) == GPT2.num_params(shape, rows)


@pytest.mark.parametrize(("shape", "vocab_size"), REAL_SHAPES)
def test_the_number_of_matrix_parameters_is_that_of_the_blocks_linear_layers(
    shape: ModelSettings, vocab_size: int
) -> None:
    model = on_meta(shape, vocab_size)
    in_blocks = [parameter for block in GPT2.blocks(model) for parameter in block.parameters() if parameter.dim() == 2]
    assert len(in_blocks) == 4 * shape.n_layer
    assert GPT2.num_matrix_params(shape) == sum(parameter.numel() for parameter in in_blocks)
    matrices = [each for each in GPT2.param_groups(model) if each.role == "matrix"]
    assert GPT2.num_matrix_params(shape) == sum(each.tensor.numel() for each in matrices)


def test_roles_are_matrices_in_blocks_the_two_embeddings_and_the_rest() -> None:
    model = new_gpt2(SMALL, 128, 0)
    listed = GPT2.param_groups(model)
    assert {each.name for each in listed if each.role == "embedding"} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    assert {each.tensor.dim() for each in listed if each.role == "other"} == {1}
    side_by_side = {each.name: each.num_matrices for each in listed if each.num_matrices > 1}
    assert side_by_side == {f"transformer.h.{number}.attn.c_attn.weight": 3 for number in range(2)}
    own = dict(model.named_parameters())
    assert all(each.tensor is own[each.name] for each in listed)


def test_a_parameter_that_is_not_trained_has_no_role() -> None:
    model = new_gpt2(SMALL, 128, 0)
    model.transformer.wpe.weight.requires_grad_(False)
    assert "transformer.wpe.weight" not in {each.name for each in GPT2.param_groups(model)}


def test_flops_a_token_are_six_a_multiplied_parameter_and_those_of_attention() -> None:
    """PaLM's appendix B, for GPT-2 small: 6 x (124,439,808 - 1,024 x 768) + 12 x 12 x 768 x 1,024."""
    assert GPT2.flops_per_token(ModelSettings(), 50_257) == 6 * 123_653_376 + 12 * 12 * 768 * 1024


def test_activations_shrink_with_checkpointing_and_grow_with_plain_attention() -> None:
    model, vocab_size = ModelSettings(), 50_257

    def activations(train: TrainSettings) -> int:
        return GPT2.activation_bytes(model, vocab_size, train, 8, True, "cuda")

    plain = activations(TrainSettings())
    less = activations(TrainSettings(activation_checkpointing=True))
    eager = activations(TrainSettings(attention="eager"))
    tokens = 8 * 1024
    chunk = 2**28 // vocab_size // 64 * 64 * vocab_size
    loss = 2 * chunk + 4 * 768 * padded_vocabulary(vocab_size) + 2 * tokens * 768
    assert plain == 38 * tokens * 768 * 12 + loss
    assert plain - less == 38 * tokens * 768 * 11 - 4 * tokens * 768 * 12
    assert eager - plain == 5 * 12 * 1024 * tokens * 12


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (new_gpt2(SMALL, 100, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_vocabulary_is_padded_for_training_and_exact_when_exported(tmp_path: Path) -> None:
    assert padded_vocabulary(100) == 128
    assert padded_vocabulary(128) == 128
    model = new_gpt2(SMALL, 100, 0).eval()
    assert model.get_input_embeddings().weight.shape[0] == 128
    GPT2.to_hf(dict(model.named_parameters()), model.config, 100, SPECIAL).save_pretrained(tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 100, (2, 8))
    with torch.no_grad():
        assert exported(ids).logits.shape[-1] == 100
        assert torch.allclose(exported(ids).logits, model(ids).logits[..., :100], atol=1e-6)
    defaults = exported.generation_config
    assert defaults.suppress_tokens == [SPECIAL.pad, SPECIAL.unk]
    assert (defaults.do_sample, defaults.temperature, defaults.top_k, defaults.top_p) == (True, 1.0, 50, 1.0)
    assert exported.get_output_embeddings().weight is exported.get_input_embeddings().weight


def test_the_export_leaves_the_training_weights_as_they_were() -> None:
    model = new_gpt2(SMALL, 100, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exported = GPT2.to_hf(dict(model.named_parameters()), model.config, 100, SPECIAL)
    with torch.no_grad():
        exported.get_input_embeddings().weight.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"n_head 3 does not divide model.n_embd 16"):
        GPT2.config(ModelSettings(n_head=3, n_embd=16), 100, SPECIAL)
