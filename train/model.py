"""GPT-2 from scratch, its size, and the folder that it is exported to."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from configs.errors import BadInput
from configs.schema import ModelSettings
from train.size import parameter_count

VOCABULARY_MULTIPLE = 64
EMBEDDING, OUTPUT_MATRIX = "transformer.wte.weight", "lm_head.weight"
"""The same matrix under two names; checkpoints hold it once."""
MODEL_RECORD = "files.json"
"""Size and checksum of every other file of a model folder, for `malmoi verify`."""


@dataclass(frozen=True)
class SpecialTokenIds:
    """Ids that the model's configuration names. Another project's tokenizer may lack a pad or an unknown token."""

    bos: int
    pad: int | None
    eos: int
    unk: int | None


def padded_vocabulary(vocab_size: int) -> int:
    """`vocab_size` rounded up to a multiple of 64, which matrix units like; the extra rows never leave training."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def gpt2_config(settings: ModelSettings, vocab_size: int, special: SpecialTokenIds) -> GPT2Config:
    """The `transformers` configuration of `settings` with `vocab_size` embedding rows.

    Raises:
        BadInput: the shape is impossible.
    """
    for name in ("n_layer", "n_head", "n_embd", "block_size"):
        if getattr(settings, name) < 1:
            raise BadInput(f"model.{name} {getattr(settings, name)}: choose 1 or more")
    if not 0 <= settings.dropout < 1:
        raise BadInput(f"model.dropout {settings.dropout}: choose 0 or more, and less than 1")
    if settings.n_embd % settings.n_head:
        raise BadInput(f"model.n_head {settings.n_head} does not divide model.n_embd {settings.n_embd}")
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


def new_model(settings: ModelSettings, vocab_size: int, special: SpecialTokenIds, seed: int) -> GPT2LMHeadModel:
    """A model with GPT-2's random weights, the same for the same seed, its vocabulary padded."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(gpt2_config(settings, padded_vocabulary(vocab_size), special))


def training_memory(settings: ModelSettings, vocab_size: int, micro_batch: int, half: bool) -> int:
    """Bytes that one rank needs without sharding, an estimate.

    Weights, gradients and AdamW's two moments are 16 bytes a parameter. Activations follow Korthikanti et al.,
    "Reducing Activation Recomputation in Large Transformer Models" (2022), section 4, without the attention
    matrix, which SDPA does not keep: 34 bytes a token, layer and channel in 16 bits. Logits are kept in their
    own precision, in fp32, and as a gradient.
    """
    tokens = micro_batch * settings.block_size
    scale = 1 if half else 2
    activations = 34 * scale * tokens * settings.n_embd * settings.n_layer
    logits = (2 * scale + 8) * tokens * padded_vocabulary(vocab_size)
    return 16 * parameter_count(settings, vocab_size) + activations + logits


def export_model(
    weights: dict[str, torch.Tensor], config: GPT2Config, vocab_size: int, special: SpecialTokenIds, folder: Path
) -> None:
    """Write `folder` so that `AutoModelForCausalLM.from_pretrained` loads it: fp32, without the padding rows.

    Args:
        weights: a `GPT2LMHeadModel`'s parameters by name, whole, the vocabulary padded.
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
    never_sampled = [token for token in (special.pad, special.unk) if token not in (None, special.bos, special.eos)]
    model.generation_config = GenerationConfig(
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        pad_token_id=special.eos if special.pad is None else special.pad,
        suppress_tokens=never_sampled or None,
    )
    model.save_pretrained(folder)
