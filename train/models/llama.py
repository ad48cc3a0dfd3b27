"""Llama (Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023), as a LlamaForCausalLM."""

from functools import partial
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from malmoi.configs.model import ModelSettings
from malmoi.train.models import rotary
from malmoi.train.models.classifier import RotaryClassifier, classifier_spec
from malmoi.train.models.rotary_folder import RotaryDefaults
from malmoi.train.models.spec import ModelSpec, SpecialTokenIds, padded_vocabulary

FOLDER = RotaryDefaults("llama", "Llama", rope_theta=10_000.0, head_dim=None, context=2048)


class TrainingLlama(rotary.RotaryTraining, LlamaForCausalLM):  # type: ignore[misc]  # transformers is untyped
    """A Llama that computes the loss; weights and names are unchanged."""


class LlamaWithClassifier(RotaryClassifier, LlamaForCausalLM):  # type: ignore[misc]
    """A Llama with a second head, named and shaped as `LlamaForSequenceClassification`'s."""


def from_hf(
    folder: Path, settings: ModelSettings, vocab_size: int, special: SpecialTokenIds, seed: int
) -> PreTrainedModel:
    """Return `rotary.rotary_from_hf` of a Llama."""
    config = SPEC.config(settings, padded_vocabulary(vocab_size), special)
    return rotary.rotary_from_hf(TrainingLlama, config, folder, vocab_size, seed)


SPEC = ModelSpec(
    config=partial(rotary.rotary_config, LlamaConfig),
    build=TrainingLlama,
    blocks=rotary.rotary_blocks,
    param_groups=rotary.rotary_param_groups,
    num_params=partial(rotary.rotary_num_params, normalizes_heads=False),
    num_matrix_params=rotary.rotary_num_matrix_params,
    flops_per_token=partial(rotary.rotary_flops_per_token, normalizes_heads=False),
    activation_bytes=partial(rotary.rotary_activation_bytes, normalizes_heads=False),
    check_hf=FOLDER.check,
    shape_of_hf=FOLDER.shape,
    hf_size=FOLDER.size,
    from_hf=from_hf,
    to_hf=partial(rotary.rotary_to_hf, LlamaForCausalLM),
    classifier=classifier_spec(LlamaWithClassifier, rotary.EMBEDDING),
)
