"""GPT-2, from scratch or from a model folder, and the folder that it is exported to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2Model

from configs.errors import BadInput, first_line
from configs.schema import ModelSettings
from train.attention import document_mask
from train.chunked_loss import OutputMatrix
from train.size import padded_vocabulary

EMBEDDING, OUTPUT_MATRIX = "transformer.wte.weight", "lm_head.weight"
"""The same matrix under two names; checkpoints hold it once."""
KEPT_IN_CONTINUING = (
    *("activation_function", "layer_norm_epsilon", "initializer_range"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)
"""What a configuration says of the arithmetic, beside the sizes."""
MODEL_RECORD = "files.json"
"""Size and checksum of every other file of a model folder, for `malmoi verify`."""


@dataclass(frozen=True)
class SpecialTokenIds:
    """Ids that the model's configuration names. Another project's tokenizer may lack a pad or an unknown token."""

    bos: int
    pad: int | None
    eos: int
    unk: int | None


class TrainedGPT2(GPT2LMHeadModel):  # type: ignore[misc]  # transformers is untyped
    """A GPT-2 that gives the nats of targets without ever holding all logits; weights and names are unchanged."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.lm_head = OutputMatrix(config.n_embd, config.vocab_size, bias=False, device="meta")
        self.tie_weights()

    def forward(
        self, input_ids: Tensor, targets: Tensor | None = None, vocab_size: int | None = None, **inputs: Any
    ) -> Any:
        """What `GPT2LMHeadModel` gives; or, given targets, their summed nats, as `OutputMatrix` says, with `inputs` as
        those of `context_vectors`."""
        if targets is None:
            return super().forward(input_ids, **inputs)
        return self.lm_head(context_vectors(self.transformer, input_ids, **inputs), targets, vocab_size)


def context_vectors(
    transformer: GPT2Model, input_ids: Tensor, positions: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """What `transformer` gives for whole sequences, `[batch, length, n_embd]`, and no host waits for its device.

    Its own `forward` looks at the positions for sequences that begin within a sample, which the host has to wait for,
    and `torch.compile` of it writes a mask down that keeps attention from its fastest kernel.

    Args:
        input_ids: `int64[batch, length]`.
        positions: `int64[batch, length]`; none: from 0.
        attention_mask: as the attention in use takes it; none: each token sees all before it.
    """
    if attention_mask is None and transformer.config._attn_implementation == "eager":
        # The others know by themselves what comes before a token.
        attention_mask = document_mask(torch.zeros_like(input_ids[:1]), "eager")
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    hidden: Tensor = transformer.drop(transformer.wte(input_ids) + transformer.wpe(positions))
    for block in transformer.h:
        hidden = block(hidden, attention_mask=attention_mask)
    vectors: Tensor = transformer.ln_f(hidden)
    return vectors


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


def new_model(settings: ModelSettings, vocab_size: int, special: SpecialTokenIds, seed: int) -> TrainedGPT2:
    """A model with GPT-2's random weights, the same for the same seed, its vocabulary padded."""
    torch.manual_seed(seed)
    return TrainedGPT2(gpt2_config(settings, padded_vocabulary(vocab_size), special))


def continued_model(
    folder: Path, settings: ModelSettings, vocab_size: int, special: SpecialTokenIds, seed: int
) -> TrainedGPT2:
    """The model of `folder`, which `train.pretrained` has seen to fit, in fp32, with dropout and size of `settings`.

    Tokens and positions that it lacks get GPT-2's random weights; those beyond `settings` are cut off.

    Raises:
        BadInput: weights are missing or broken.
    """
    try:
        theirs, loading = GPT2LMHeadModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError and safetensors' own alike
        raise BadInput(
            f"{folder}: cannot be loaded ({first_line(error)}); download or export the model again"
        ) from error
    missing = sorted(set(loading["missing_keys"]) - {OUTPUT_MATRIX})
    if missing:
        raise BadInput(f"{folder}: lacks the weights {missing[0]} and {len(missing) - 1} more; export the model again")
    config = gpt2_config(settings, padded_vocabulary(vocab_size), special)
    for name in KEPT_IN_CONTINUING:
        setattr(config, name, getattr(theirs.config, name))
    torch.manual_seed(seed)
    model = TrainedGPT2(config)
    weights = theirs.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            rows = min(
                len(tensor), len(weights[name]), vocab_size if name in (EMBEDDING, OUTPUT_MATRIX) else len(tensor)
            )
            tensor[:rows] = weights[name][:rows]
    return model


def exported_model(
    weights: dict[str, Tensor], config: GPT2Config, vocab_size: int, special: SpecialTokenIds
) -> GPT2LMHeadModel:
    """A trained model as others know it, on the CPU: fp32, without the padding rows.

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
    return model


def export_model(
    weights: dict[str, Tensor], config: GPT2Config, vocab_size: int, special: SpecialTokenIds, folder: Path
) -> None:
    """Write `exported_model` to `folder`, so that `AutoModelForCausalLM.from_pretrained` loads it."""
    exported_model(weights, config, vocab_size, special).save_pretrained(folder)
