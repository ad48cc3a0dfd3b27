"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019), as a GPT2LMHeadModel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from malmoi.configs.model import ModelSettings, check_has_no_rotary_settings, check_heads
from malmoi.configs.train import TrainSettings
from malmoi.train.models.attention import document_mask
from malmoi.train.models.cross_entropy import OutputMatrix, loss_bytes
from malmoi.train.models.spec import SpecialTokenIds, padded_vocabulary, sampling_config
from malmoi.train.models.weight_files import Table, load_parameters, stored_config
from malmoi.train.optim import ModelParameter

EMBEDDING, OUTPUT_MATRIX = "transformer.wte.weight", "lm_head.weight"
"""The same matrix under two names; checkpoints hold it once."""
EMBEDDINGS = (EMBEDDING, "transformer.wpe.weight")
QKV = ".attn.c_attn.weight"
"""Query, key and value side by side in one parameter."""
KEPT_FROM_HF = (
    *("activation_function", "layer_norm_epsilon", "initializer_range"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)
"""What a configuration says of the arithmetic, beside the sizes."""


class TrainingGPT2(GPT2LMHeadModel):  # type: ignore[misc]  # transformers is untyped
    """A GPT-2 that computes the loss without ever holding all logits; weights and names are unchanged."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.lm_head = OutputMatrix(config.n_embd, config.vocab_size, bias=False, device="meta")
        self.tie_weights()

    def forward(
        self, input_ids: Tensor, targets: Tensor | None = None, vocab_size: int | None = None, **inputs: Any
    ) -> Any:
        """Return what `GPT2LMHeadModel` does; or, given targets, their loss sum, as `OutputMatrix` does, with `inputs`
        as those of `hidden_states`."""
        if targets is None:
            return super().forward(input_ids, **inputs)
        return self.lm_head(hidden_states(self.transformer, input_ids, **inputs), targets, vocab_size)


def hidden_states(
    transformer: GPT2Model, input_ids: Tensor, positions: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """Return `transformer`'s last hidden states of full sequences, `[batch, length, n_embd]`, without a host sync.

    Its own `forward` looks in the positions for sequences that begin within a sample, for which the host has to wait
    for the device, and `torch.compile` of it makes a mask that keeps attention from its fastest kernel.

    Args:
        input_ids: `int64[batch, length]`.
        positions: `int64[batch, length]`; None: from 0.
        attention_mask: as the attention in use takes it; None: each token sees all before it.
    """
    if attention_mask is None and transformer.config._attn_implementation == "eager":
        # The others are causal by themselves.
        attention_mask = document_mask(torch.zeros_like(input_ids[:1]), "eager")
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    hidden: Tensor = transformer.drop(transformer.wte(input_ids) + transformer.wpe(positions))
    for block in transformer.h:
        hidden = block(hidden, attention_mask=attention_mask)
    normalized: Tensor = transformer.ln_f(hidden)
    return normalized


def gpt2_config(settings: ModelSettings, vocab_size: int, special: SpecialTokenIds) -> GPT2Config:
    """Return the `transformers` configuration of `settings` with `vocab_size` embedding rows.

    Raises:
        UserError: the heads do not divide the hidden size, or the settings are of another architecture.
    """
    check_heads(settings)
    check_has_no_rotary_settings(settings)
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=settings.block_size,
        n_embd=settings.n_embd,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        use_cache=False,
    )


def gpt2_blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the transformer blocks."""
    blocks: Sequence[nn.Module] = model.transformer.h  # type: ignore[union-attr,assignment]
    return blocks


def gpt2_param_groups(model: nn.Module) -> list[ModelParameter]:
    """Return the trainable parameters with their roles."""
    parameters = []
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            continue
        if name in EMBEDDINGS:
            parameters.append(ModelParameter(name, tensor, "embedding"))
        elif ".h." in name and tensor.dim() == 2:
            parameters.append(ModelParameter(name, tensor, "matrix", 3 if name.endswith(QKV) else 1))
        else:
            parameters.append(ModelParameter(name, tensor, "other"))
    return parameters


def gpt2_num_params(settings: ModelSettings, vocab_size: int) -> int:
    """Return the trainable parameters; the output matrix is the embedding and counts once."""
    width = settings.n_embd
    block = 12 * width * width + 13 * width
    return (vocab_size + settings.block_size) * width + settings.n_layer * block + 2 * width


def gpt2_num_matrix_params(settings: ModelSettings) -> int:
    """Return the parameters in the blocks' matrices: 3 + 1 + 4 + 4 of n_embd x n_embd a block."""
    return 12 * settings.n_layer * settings.n_embd**2


def gpt2_flops_per_token(settings: ModelSettings, vocab_size: int) -> float:
    """Return the floating-point operations of forward and backward for one token.

    Six a matrix parameter, and 12 x layers x width x block for attention (Chowdhery et al., "PaLM", 2022,
    appendix B). Position embeddings are looked up, not multiplied.
    """
    multiplied = gpt2_num_params(settings, vocab_size) - settings.block_size * settings.n_embd
    return 6.0 * multiplied + 12.0 * settings.n_layer * settings.n_embd * settings.block_size


def gpt2_activation_bytes(
    model: ModelSettings, vocab_size: int, train: TrainSettings, micro_batch_size: int, half: bool, device_type: str
) -> int:
    """Estimate the bytes that a forward pass keeps for the backward pass on one device.

    Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022), section 4: in 16 bits
    34 bytes a token, layer and channel, and 5 for each attention weight, which fused kernels do not keep; 4 more for
    inputs of the two norms, which autocast keeps in fp32. With activation checkpointing a block's input alone, and one
    full block.
    """
    scale = 1 if half else 2
    tokens = micro_batch_size * model.block_size
    block = (38 if half else 68) * tokens * model.n_embd
    if train.attention == "eager":
        block += 5 * scale * tokens * model.block_size * model.n_head
    if train.activation_checkpointing:
        blocks = model.n_layer * 4 * tokens * model.n_embd + block
    else:
        blocks = model.n_layer * block
    return blocks + loss_bytes(tokens, model.n_embd, vocab_size, half, device_type)


def gpt2_from_hf(
    folder: Path, settings: ModelSettings, vocab_size: int, special: SpecialTokenIds, seed: int
) -> TrainingGPT2:
    """Load the model of `folder`, which `gpt2_folder` has accepted, in fp32, with dropout and size of `settings`.

    Tokens and positions that it lacks get GPT-2's random weights; those beyond `settings` are cut off.

    Raises:
        UserError: weights are missing or broken.
    """
    theirs = stored_config(folder)
    config = gpt2_config(settings, padded_vocabulary(vocab_size), special)
    for name in KEPT_FROM_HF:
        setattr(config, name, getattr(theirs, name))
    torch.manual_seed(seed)
    model = TrainingGPT2(config)
    tables = {EMBEDDING: Table(theirs.vocab_size, vocab_size), EMBEDDINGS[1]: Table(theirs.n_positions)}
    load_parameters(model, folder, _stored_names, tables)
    return model


def _stored_names(name: str) -> list[str]:
    """Return the names under which the parameter `name` may be in a model folder: OpenAI's files name them without a
    prefix, and the embedding may go by the name of the output matrix."""
    return [name, name.removeprefix("transformer."), *([OUTPUT_MATRIX] if name == EMBEDDING else [])]


def gpt2_to_hf(
    weights: Mapping[str, Tensor], config: GPT2Config, vocab_size: int, special: SpecialTokenIds
) -> GPT2LMHeadModel:
    """Return a trained model as a plain `GPT2LMHeadModel` on the CPU: fp32, without the padding rows.

    Args:
        weights: full parameters by name, the vocabulary padded.
    """
    exported = GPT2Config(
        **{**config.to_diff_dict(), "vocab_size": vocab_size, "use_cache": True, "pad_token_id": special.pad}
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(exported)
    trimmed = {name: tensor.detach().float().cpu() for name, tensor in weights.items()}
    trimmed[EMBEDDING] = trimmed[OUTPUT_MATRIX] = trimmed[EMBEDDING][:vocab_size].clone()
    model.load_state_dict(trimmed, assign=True)
    model.tie_weights()
    model.generation_config = sampling_config(special)
    return model
