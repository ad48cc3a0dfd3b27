"""What a model family's registry entry tells the rest of training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from malmoi.configs.finetune import TaskKind
from malmoi.configs.model import ModelSettings
from malmoi.configs.outputs import SamplingSettings
from malmoi.configs.train import TrainSettings
from malmoi.train.optim import ModelParameter

VOCABULARY_MULTIPLE = 64
IGNORE_INDEX = -100
"""The target of a position that has no loss, as torch's and transformers' losses have it."""


def padded_vocabulary(vocab_size: int) -> int:
    """Return `vocab_size` rounded up to a multiple of 64, which matrix units like; the extra rows never leave
    training."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True)
class SpecialTokenIds:
    """Ids that the model's configuration names. Another project's tokenizer may lack a pad or an unknown token."""

    bos: int
    pad: int | None
    eos: int
    unk: int | None


def sampling_config(special: SpecialTokenIds) -> GenerationConfig:
    """Return the `generation_config.json` of an exported model: it samples as `malmoi generate` does by default.

    `transformers serve` takes temperature and top_p from a request, but not whether to sample: without `do_sample` it
    is greedy at any temperature. vLLM reads the other values, and has no top_k of its own.
    """
    defaults = SamplingSettings()
    never_sampled = [token for token in (special.pad, special.unk) if token not in (None, special.bos, special.eos)]
    return GenerationConfig(
        do_sample=True,
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        pad_token_id=special.eos if special.pad is None else special.pad,
        suppress_tokens=never_sampled or None,
    )


@dataclass(frozen=True)
class HfSize:
    """What a model in a folder reads."""

    rows: int
    """Tokens that it has vectors for."""
    context: int
    """Tokens at once."""
    has_position_weights: bool
    """Whether each position has a vector, so that another context needs other weights."""


@dataclass(frozen=True)
class ClassifierSpec:
    """A model family's head for fine-tuning on labels."""

    build: Callable[[PreTrainedModel, TaskKind, int, int], PreTrainedModel]
    """From a training model, the kind of task, the number of classes and a seed to a model whose forward takes
    `(input_ids, lengths, sequences, with_lm_logits)` and gives scores and logits; see `classifier`."""
    export: Callable[[Mapping[str, Tensor], PreTrainedConfig, TaskKind, int, int, tuple[str, ...], Path], None]
    """Writes a model folder from weights by name, configuration, kind, vocabulary size, pad id and class names."""


@dataclass(frozen=True)
class ModelSpec:
    """A model family. All sizes are of the trained model, its vocabulary padded where `vocab_size` is not.

    The training model's forward takes `(input_ids, targets, vocab_size, positions=, attention_mask=)` and returns the
    sum of the targets' losses, an fp32 scalar; without targets it returns what the `transformers` class returns.
    """

    config: Callable[[ModelSettings, int, SpecialTokenIds], PreTrainedConfig]
    """The `transformers` configuration of a shape with so many embedding rows; UserError for an impossible one."""
    build: Callable[[PreTrainedConfig], PreTrainedModel]
    """The training model with random weights, drawn from torch's global generator."""
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    """The transformer blocks: what is compiled, checkpointed and sharded one by one."""
    param_groups: Callable[[nn.Module], list[ModelParameter]]
    """The trainable parameters with their roles, in the model's order."""
    num_params: Callable[[ModelSettings, int], int]
    """Trainable parameters with a vocabulary of that size."""
    num_matrix_params: Callable[[ModelSettings], int]
    """Those of them in the blocks' matrices."""
    flops_per_token: Callable[[ModelSettings, int], float]
    """Of forward and backward."""
    activation_bytes: Callable[[ModelSettings, int, TrainSettings, int, bool, str], int]
    """An estimate of what a forward pass keeps, for (shape, vocabulary, settings, micro-batch size, whether it computes
    in 16 bits, device type)."""
    check_hf: Callable[[Path, ModelSettings], None]
    """Raises UserError where a folder holds no model of this family and shape that training can begin from."""
    shape_of_hf: Callable[[Path], ModelSettings]
    """The shape of the model in a folder, without dropout."""
    hf_size: Callable[[Path], HfSize]
    """What the model in a folder reads."""
    from_hf: Callable[[Path, ModelSettings, int, SpecialTokenIds, int], PreTrainedModel]
    """The training model with the weights of a folder, for (folder, shape, vocabulary, special tokens, seed)."""
    to_hf: Callable[[Mapping[str, Tensor], PreTrainedConfig, int, SpecialTokenIds], PreTrainedModel]
    """The `transformers` model from full weights by name, without padding rows."""
    classifier: ClassifierSpec | None = None
    """None: the family cannot be fine-tuned on labels."""
