"""What decoders with rotary positions, RMSNorm and gated layers share: Llama and Qwen3, from `transformers` alone.

Weights and names are those of the stock classes, so that what is exported needs no code of ours.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from malmoi.configs.model import ModelSettings, resolved_rotary
from malmoi.configs.train import TrainSettings
from malmoi.train.models.attention import document_mask
from malmoi.train.models.cross_entropy import OutputMatrix, loss_bytes
from malmoi.train.models.rotary_folder import RotaryDefaults
from malmoi.train.models.spec import ClassifierSpec, ModelSpec, SpecialTokenIds, padded_vocabulary, sampling_config
from malmoi.train.models.weight_files import Table, load_parameters, stored_config
from malmoi.train.optim import ModelParameter

EMBEDDING, OUTPUT_MATRIX = "model.embed_tokens.weight", "lm_head.weight"
"""Two matrices, or the same one under two names, which checkpoints hold once."""
KEPT_FROM_HF = ("rms_norm_eps", "initializer_range")
"""What a configuration says of the arithmetic, beside the sizes."""


class RotaryTraining:
    """Mixed in before a stock causal language model: computes the loss without ever holding all logits."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # the stock class comes next
        head = OutputMatrix(config.hidden_size, config.vocab_size, bias=False, device="meta")
        head.weight = self.lm_head.weight  # type: ignore[has-type]  # of the stock class
        self.lm_head = head

    def forward(
        self, input_ids: Tensor, targets: Tensor | None = None, vocab_size: int | None = None, **inputs: Any
    ) -> Any:
        """Return what the stock class does; or, given targets, their loss sum, as `OutputMatrix` does, with `inputs` as
        those of `hidden_states`."""
        if targets is None:
            return super().forward(input_ids, **inputs)  # type: ignore[misc]  # of the stock class
        decoder = self.model  # type: ignore[attr-defined]  # of the stock class
        return self.lm_head(hidden_states(decoder, input_ids, **inputs), targets, vocab_size)


def hidden_states(
    decoder: Any, input_ids: Tensor, positions: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the last hidden states of full sequences, `[batch, length, n_embd]`, without a host sync.

    The stock `forward` looks in the positions for sequences that begin within a sample, for which the host has to wait
    for the device.

    Args:
        decoder: a `LlamaModel` or `Qwen3Model`.
        input_ids: `int64[batch, length]`.
        positions: `int64[batch, length]`; None: from 0.
        attention_mask: as the attention in use takes it; None: each token sees all before it.
    """
    if attention_mask is None and decoder.config._attn_implementation == "eager":
        # The others are causal by themselves.
        attention_mask = document_mask(torch.zeros_like(input_ids[:1]), "eager")
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    hidden: Tensor = decoder.embed_tokens(input_ids)
    rotations = decoder.rotary_emb(hidden, position_ids=positions)
    for block in decoder.layers:
        hidden = block(hidden, attention_mask=attention_mask, position_embeddings=rotations)
    normalized: Tensor = decoder.norm(hidden)
    return normalized


def rotary_config(
    config_class: Callable[..., PreTrainedConfig], settings: ModelSettings, vocab_size: int, special: SpecialTokenIds
) -> PreTrainedConfig:
    """Return the `transformers` configuration of `settings` with `vocab_size` embedding rows.

    Raises:
        UserError: heads do not divide, or a head has no pairs of channels.
    """
    shape = resolved_rotary(settings)
    return config_class(
        vocab_size=vocab_size,
        hidden_size=shape.n_embd,
        intermediate_size=shape.n_inner,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.block_size,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        attention_dropout=shape.dropout,
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        use_cache=False,
    )


def rotary_blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the transformer blocks."""
    blocks: Sequence[nn.Module] = model.model.layers  # type: ignore[union-attr,assignment]  # a stock model
    return blocks


def rotary_param_groups(model: nn.Module) -> list[ModelParameter]:
    """Return the trainable parameters with their roles; an output matrix of its own is a table of vectors too."""
    parameters = []
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            continue
        if name in (EMBEDDING, OUTPUT_MATRIX):
            parameters.append(ModelParameter(name, tensor, "embedding"))
        elif ".layers." in name and tensor.dim() == 2:
            parameters.append(ModelParameter(name, tensor, "matrix"))
        else:
            parameters.append(ModelParameter(name, tensor, "other"))
    return parameters


def rotary_num_params(settings: ModelSettings, vocab_size: int, normalizes_heads: bool) -> int:
    """Return the trainable parameters.

    Args:
        normalizes_heads: whether queries and keys have a norm of their own.
    """
    shape = resolved_rotary(settings)
    assert shape.head_dim is not None
    norms = 2 * shape.n_embd + (2 * shape.head_dim if normalizes_heads else 0)
    tables = vocab_size * shape.n_embd * (1 if shape.tie_embeddings else 2)
    return tables + rotary_num_matrix_params(shape) + shape.n_layer * norms + shape.n_embd


def rotary_num_matrix_params(settings: ModelSettings) -> int:
    """Return the parameters in the blocks' matrices: query, key, value, output, gate, up and down."""
    shape = resolved_rotary(settings)
    assert shape.head_dim is not None and shape.n_kv_head is not None and shape.n_inner is not None
    attention = 2 * shape.n_embd * shape.head_dim * (shape.n_head + shape.n_kv_head)
    return shape.n_layer * (attention + 3 * shape.n_embd * shape.n_inner)


def rotary_flops_per_token(settings: ModelSettings, vocab_size: int, normalizes_heads: bool) -> float:
    """Return the floating-point operations of forward and backward for one token.

    Six a matrix parameter, and 12 x layers x width of all heads x block for attention (Chowdhery et al., "PaLM", 2022,
    appendix B). An embedding that is not the output matrix is looked up, not multiplied.
    """
    shape = resolved_rotary(settings)
    assert shape.head_dim is not None
    looked_up = 0 if shape.tie_embeddings else vocab_size * shape.n_embd
    multiplied = rotary_num_params(shape, vocab_size, normalizes_heads) - looked_up
    return 6.0 * multiplied + 12.0 * shape.n_layer * shape.n_head * shape.head_dim * shape.block_size


def rotary_activation_bytes(
    settings: ModelSettings,
    vocab_size: int,
    train: TrainSettings,
    micro_batch_size: int,
    half: bool,
    device_type: str,
    normalizes_heads: bool,
) -> int:
    """Estimate the bytes that a forward pass keeps for the backward pass on one device.

    Of each token and layer, as autograd saves it: the residual stream and its norm, both in fp32, before attention and
    before the gated layer; in 16 bits a copy for each of five products, in fp32 key and value; query, and key and value
    repeated for each query's head; attention's output; gate, its activation, up and their product. A norm of queries
    and keys keeps them in fp32 and normalized. With activation checkpointing a block's input alone, and one
    full block.
    """
    shape = resolved_rotary(settings)
    assert shape.head_dim is not None and shape.n_kv_head is not None and shape.n_inner is not None
    low = 2 if half else 4
    width, heads = shape.n_embd, shape.n_head * shape.head_dim
    kv_heads = shape.n_kv_head * shape.head_dim
    copies = 5 * low * width if half else 2 * low * kv_heads
    normalized = (4 + low) * (heads + kv_heads) if normalizes_heads else 0
    token = 16 * width + copies + 4 * low * heads + normalized + 4 * low * shape.n_inner
    tokens = micro_batch_size * shape.block_size
    block = tokens * token
    if train.attention == "eager":
        block += (5 if half else 8) * tokens * shape.block_size * shape.n_head
    inputs = 4 * tokens * width
    blocks = shape.n_layer * inputs + block if train.activation_checkpointing else shape.n_layer * block
    return blocks + loss_bytes(tokens, width, vocab_size, half, device_type)


def rotary_from_hf(
    build: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    folder: Path,
    vocab_size: int,
    seed: int,
) -> PreTrainedModel:
    """Load the model of `folder`, which was accepted, in fp32, with dropout and size of `config`.

    Tokens that it lacks get random weights; those beyond `vocab_size` are cut off.

    Raises:
        UserError: weights are missing or broken.
    """
    theirs = stored_config(folder)
    for name in KEPT_FROM_HF:
        setattr(config, name, getattr(theirs, name))
    torch.manual_seed(seed)
    model = build(config)
    table = Table(theirs.vocab_size, vocab_size)
    load_parameters(model, folder, lambda name: [name], {EMBEDDING: table, OUTPUT_MATRIX: table})
    return model


def rotary_to_hf(
    stock: type[PreTrainedModel],
    weights: Mapping[str, Tensor],
    config: PreTrainedConfig,
    vocab_size: int,
    special: SpecialTokenIds,
) -> PreTrainedModel:
    """Return a trained model as the plain class of `transformers` on the CPU: fp32, without the padding rows.

    Args:
        weights: full parameters by name, the vocabulary padded.
    """
    changed = {"vocab_size": vocab_size, "use_cache": True, "pad_token_id": special.pad}
    exported = type(config)(**{**config.to_diff_dict(), **changed})
    with torch.device("meta"):
        model = stock(exported)
    trimmed = {name: tensor.detach().float().cpu() for name, tensor in weights.items()}
    for name in (EMBEDDING, OUTPUT_MATRIX):
        if name in trimmed:
            trimmed[name] = trimmed[name][:vocab_size].clone()
    trimmed.setdefault(OUTPUT_MATRIX, trimmed[EMBEDDING])
    model.load_state_dict(trimmed, assign=True)
    model.tie_weights()
    # Computed from the configuration, and no part of the weights.
    model.model.rotary_emb = type(model.model.rotary_emb)(exported)
    model.generation_config = sampling_config(special)
    return model


def rotary_spec(
    config_class: type[PreTrainedConfig],
    stock: type[PreTrainedModel],
    training: type[PreTrainedModel],
    folder: RotaryDefaults,
    classifier: ClassifierSpec,
    normalizes_heads: bool,
) -> ModelSpec:
    """Return the registry entry of a family.

    Args:
        stock: the causal language model of `transformers`.
        training: the same with `RotaryTraining` mixed in.
        folder: what its model folders leave out.
        normalizes_heads: whether queries and keys have a norm of their own.
    """
    config = partial(rotary_config, config_class)

    def from_hf(
        path: Path, settings: ModelSettings, vocab_size: int, special: SpecialTokenIds, seed: int
    ) -> PreTrainedModel:
        padded = config(settings, padded_vocabulary(vocab_size), special)
        return rotary_from_hf(training, padded, path, vocab_size, seed)

    return ModelSpec(
        config=config,
        build=training,
        blocks=rotary_blocks,
        param_groups=rotary_param_groups,
        num_params=partial(rotary_num_params, normalizes_heads=normalizes_heads),
        num_matrix_params=rotary_num_matrix_params,
        flops_per_token=partial(rotary_flops_per_token, normalizes_heads=normalizes_heads),
        activation_bytes=partial(rotary_activation_bytes, normalizes_heads=normalizes_heads),
        check_hf=folder.check,
        shape_of_hf=folder.shape,
        hf_size=folder.size,
        from_hf=from_hf,
        to_hf=partial(rotary_to_hf, stock),
        classifier=classifier,
    )
