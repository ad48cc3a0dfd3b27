"""Llama and Qwen3: their entries say of a model what it is, and train and export `transformers`' own classes."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from malmoi.configs.model import ModelSettings
from malmoi.configs.train import Attention, TrainSettings
from malmoi.errors import UserError
from malmoi.train.data.document_mask import Batch
from malmoi.train.models import MODELS
from malmoi.train.models.compute import configure_compute
from malmoi.train.models.cross_entropy import plain_loss_sum
from malmoi.train.models.spec import padded_vocabulary
from malmoi.train.tasks.language_modeling import batch_loss_sum
from tests.train.training_models import SPECIAL

FAMILIES = ("llama", "qwen3")
STOCK = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}
VOCABULARY = 100
CPU = torch.device("cpu")


def shape_of(family: str, **changes: object) -> ModelSettings:
    """A small one with grouped queries, and heads that are not n_embd / n_head wide."""
    small = ModelSettings(family, n_layer=2, n_head=4, n_embd=32, block_size=16, n_kv_head=2, head_dim=12)
    return replace(small, **changes)  # type: ignore[arg-type]  # any field


def new_model(shape: ModelSettings, vocab_size: int = VOCABULARY, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    spec = MODELS[shape.architecture]
    return spec.build(spec.config(shape, padded_vocabulary(vocab_size), SPECIAL))


def exported(model: PreTrainedModel, family: str, folder: Path) -> Path:
    MODELS[family].to_hf(dict(model.named_parameters()), model.config, VOCABULARY, SPECIAL).save_pretrained(folder)
    return folder


PUBLISHED = [
    # HuggingFaceTB/SmolLM-135M and SmolLM-360M, TinyLlama/TinyLlama-1.1B, Qwen/Qwen3-0.6B: config.json on the Hub.
    pytest.param(
        ModelSettings("llama", n_layer=30, n_head=9, n_embd=576, n_kv_head=3, n_inner=1536), 49_152, 134_515_008,
        id="smollm-135m",
    ),
    pytest.param(
        ModelSettings("llama", n_layer=32, n_head=15, n_embd=960, n_kv_head=5, n_inner=2560), 49_152, 361_821_120,
        id="smollm-360m",
    ),
    pytest.param(
        ModelSettings(
            "llama", n_layer=22, n_head=32, n_embd=2048, n_kv_head=4, n_inner=5632, tie_embeddings=False
        ), 32_000, 1_100_048_384,
        id="tinyllama-1.1b",
    ),
    pytest.param(
        ModelSettings("qwen3", n_layer=28, n_head=16, n_embd=1024, n_kv_head=8, head_dim=128, n_inner=3072),
        151_936,
        596_049_920,
        id="qwen3-0.6b",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "vocab_size", "published"), PUBLISHED)
def test_the_parameters_are_the_published_ones_and_those_of_the_model(
    shape: ModelSettings, vocab_size: int, published: int
) -> None:
    spec = MODELS[shape.architecture]
    with torch.device("meta"):
        model = spec.build(spec.config(shape, vocab_size, SPECIAL))
    listed = spec.param_groups(model)
    assert [each.name for each in listed] == [name for name, _ in model.named_parameters()]
    assert spec.num_params(shape, vocab_size) == published == sum(each.tensor.numel() for each in listed)
    matrices = [each.tensor for each in listed if each.role == "matrix"]
    assert len(matrices) == 7 * shape.n_layer
    assert spec.num_matrix_params(shape) == sum(each.numel() for each in matrices)
    assert len([each for each in listed if each.role == "embedding"]) == (1 if shape.tie_embeddings else 2)
    multiplied = published - (0 if shape.tie_embeddings else vocab_size * shape.n_embd)
    heads = shape.n_head * (shape.head_dim or shape.n_embd // shape.n_head)
    attention = 12 * shape.n_layer * heads * shape.block_size
    assert spec.flops_per_token(shape, vocab_size) == 6 * multiplied + attention


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kv_heads", [12, 3])
def test_the_activations_of_a_real_width_are_what_autograd_keeps(family: str, half: bool, kv_heads: int) -> None:
    shape = ModelSettings(family, n_head=12, n_embd=768, block_size=128, n_kv_head=kv_heads)
    kept, estimated = {}, {}
    for layers in (1, 2):
        for batch in (1, 2):
            one = replace(shape, n_layer=layers)
            kept[layers, batch] = saved_bytes(new_model(one, 256), torch.zeros(batch, 128, dtype=torch.int64), half)
            estimated[layers, batch] = MODELS[family].activation_bytes(one, 256, TrainSettings(), batch, half, "cuda")

    def of_a_layer_and_sample(sizes: dict[tuple[int, int], int]) -> int:
        """Without weights in 16 bits, which do not grow with the batch, and the loss, which does not with layers."""
        return (sizes[2, 2] - sizes[2, 1]) - (sizes[1, 2] - sizes[1, 1])

    assert of_a_layer_and_sample(estimated) == pytest.approx(of_a_layer_and_sample(kept), rel=0.06)


def saved_bytes(model: PreTrainedModel, ids: Tensor, half: bool) -> int:
    """Return the bytes that autograd keeps of a forward pass, without the parameters."""
    configure_compute(model, MODELS[model.config.model_type].blocks(model), TrainSettings(), "fp32", False)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    context = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
        model(ids, ids, 256)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_and_its_gradients_are_those_of_the_stock_model(
    family: str, tied: bool, attention: Attention, tmp_path: Path
) -> None:
    model = new_model(shape_of(family, tie_embeddings=tied))
    configure_compute(model, MODELS[family].blocks(model), TrainSettings(attention=attention), "fp32", False)
    stock = AutoModelForCausalLM.from_pretrained(exported(model, family, tmp_path))
    assert type(stock) is STOCK[family]
    ids, targets = torch.randint(0, VOCABULARY, (2, 3, 16))
    loss = model(ids, targets, VOCABULARY)
    logits = stock(ids).logits
    reference = plain_loss_sum(logits, targets, VOCABULARY)
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    torch.testing.assert_close(model(ids).logits[..., :VOCABULARY], logits, rtol=1e-5, atol=1e-5)
    loss.backward()
    reference.backward()
    theirs = dict(stock.named_parameters())
    for name, parameter in model.named_parameters():
        rows = len(theirs[name])
        torch.testing.assert_close(parameter.grad[:rows], theirs[name].grad, rtol=1e-4, atol=1e-5)
        assert not parameter.grad[rows:].any()
    is_same = stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    assert is_same == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_behind_a_mask_is_read_as_if_it_were_alone(family: str) -> None:
    model = new_model(shape_of(family))
    ids, targets = torch.randint(0, VOCABULARY, (2, 1, 16))
    starts = torch.tensor([[0] * 6 + [6] * 10])
    together = batch_loss_sum(model, Batch(ids.numpy(), targets.numpy(), starts.numpy()), VOCABULARY, CPU, "sdpa")
    alone = [model(ids[:, part], targets[:, part], VOCABULARY) for part in (slice(0, 6), slice(6, 16))]
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=0)
    assert not torch.allclose(model(ids, targets, VOCABULARY), together, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_model_that_is_taken_in_and_exported_has_the_same_weights(family: str, tmp_path: Path) -> None:
    theirs = stock_model(family, tmp_path / "theirs")
    spec = MODELS[family]
    shape = spec.shape_of_hf(tmp_path / "theirs")
    spec.check_hf(tmp_path / "theirs", shape)
    size = spec.hf_size(tmp_path / "theirs")
    assert (size.rows, size.context, size.has_position_weights) == (VOCABULARY, 16, False)
    model = spec.from_hf(tmp_path / "theirs", shape, VOCABULARY, SPECIAL, 1)
    assert (model.config.rms_norm_eps, model.config.rope_parameters["rope_theta"]) == (1e-3, 500.0)
    back = AutoModelForCausalLM.from_pretrained(exported(model, family, tmp_path / "back"))
    weights = theirs.state_dict()
    assert weights.keys() == back.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in back.state_dict().items())
    ids = torch.randint(0, VOCABULARY, (1, 16))
    assert torch.equal(theirs(ids).logits, back(ids).logits)


def stock_model(family: str, folder: Path, **changes: object) -> PreTrainedModel:
    """Save one as others make it, with values of its own."""
    configs = {"llama": LlamaConfig, "qwen3": Qwen3Config}
    config = configs[family](
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 16,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            **changes,
        }
    )
    torch.manual_seed(5)
    model: PreTrainedModel = STOCK[family](config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_larger_vocabulary_gets_rows_and_keeps_the_others(family: str, tmp_path: Path) -> None:
    theirs = stock_model(family, tmp_path)
    spec = MODELS[family]
    model = spec.from_hf(tmp_path, spec.shape_of_hf(tmp_path), 150, SPECIAL, 1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = model.state_dict()[name]
        assert torch.equal(rows[:VOCABULARY], theirs.state_dict()[name])
        assert rows[VOCABULARY:150].std() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_training_does_not_know_is_refused(family: str, tmp_path: Path) -> None:
    spec = MODELS[family]
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    stock_model(family, tmp_path / "scaled", rope_parameters=scaled)
    with pytest.raises(UserError, match=r"rotary positions are scaled \(linear\)"):
        spec.check_hf(tmp_path / "scaled", shape_of(family))
    stock_model(family, tmp_path / "biased", attention_bias=True)
    with pytest.raises(UserError, match="attention_bias is True"):
        spec.check_hf(tmp_path / "biased", shape_of(family))
    stock_model(family, tmp_path / "plain")
    with pytest.raises(UserError, match=r"has n_inner 40, rope_theta 500.0, tie_embeddings False, unlike the settings"):
        spec.check_hf(tmp_path / "plain", shape_of(family))
    other = "qwen3" if family == "llama" else "llama"
    with pytest.raises(UserError, match=f"holds a model of type {family}, and model.architecture is {other}"):
        MODELS[other].check_hf(tmp_path / "plain", shape_of(other))
    config = tmp_path / "plain" / "config.json"
    config.write_text(json.dumps({"model_type": family}), encoding="utf-8")
    with pytest.raises(UserError, match="names no num_hidden_layers"):
        spec.shape_of_hf(tmp_path / "plain")


def test_an_older_configuration_says_the_same(tmp_path: Path) -> None:
    """`rope_theta` beside the sizes, as transformers 4 wrote it."""
    stock_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"], config["head_dim"]
    old = {**config, "rope_theta": 700.0, "rope_scaling": None, "num_key_value_heads": None}
    (tmp_path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    shape = MODELS["llama"].shape_of_hf(tmp_path)
    assert (shape.rope_theta, shape.head_dim, shape.n_kv_head) == (700.0, 8, 4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_head": 3}, "model.n_kv_head 3 does not divide model.n_head 4"),
        ({"n_embd": 30}, "model.n_head 4 does not divide model.n_embd 30"),
        ({"head_dim": 7}, "model.head_dim 7: rotary positions turn pairs of channels"),
    ],
)
def test_an_impossible_shape_is_refused(family: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MODELS[family].config(shape_of(family, **changes), VOCABULARY, SPECIAL)


@pytest.mark.parametrize("changes", [{"n_kv_head": 2}, {"tie_embeddings": False}, {"rope_theta": 500.0}])
def test_gpt2_has_none_of_their_settings(changes: dict[str, object]) -> None:
    shape = replace(ModelSettings(n_layer=1, n_head=2, n_embd=16), **changes)  # type: ignore[arg-type]  # any field
    with pytest.raises(UserError, match=f"model.{next(iter(changes))} .*: model.architecture gpt2 has no such setting"):
        MODELS["gpt2"].config(shape, VOCABULARY, SPECIAL)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_classifier_is_exported_as_the_stock_class_with_the_same_scores(
    family: str, tied: bool, tmp_path: Path
) -> None:
    base = new_model(shape_of(family, tie_embeddings=tied))
    classifier = MODELS[family].classifier
    assert classifier is not None
    model = classifier.build(base, "classification", 3, 1).eval()
    ids = torch.randint(4, VOCABULARY, (2, 9))
    lengths = torch.tensor([9, 6])
    scores, logits = model(ids, lengths, 1, with_lm_logits=True)
    torch.testing.assert_close(logits, base.eval()(ids).logits)
    weights = dict(model.named_parameters())
    classifier.export(weights, model.config, "classification", VOCABULARY, 1, ("a", "b", "c"), tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(stock).__name__ == f"{STOCK[family].__name__.removesuffix('ForCausalLM')}ForSequenceClassification"
    ids[1, 6:] = 1  # padding
    torch.testing.assert_close(stock(ids, attention_mask=(ids != 1).long()).logits, scores, rtol=1e-5, atol=1e-6)
    assert stock.config.id2label == {0: "a", 1: "b", 2: "c"}
