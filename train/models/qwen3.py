"""Qwen3 (Yang et al., "Qwen3 Technical Report", 2025), a Llama whose queries and keys are normalized, as a
Qwen3ForCausalLM."""

from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from malmoi.configs.model import ModelSettings
from malmoi.train.models import rotary
from malmoi.train.models.classifier import RotaryClassifier, classifier_spec
from malmoi.train.models.rotary_folder import RotaryDefaults
from malmoi.train.models.spec import ModelSpec, SpecialTokenIds, padded_vocabulary

FOLDER = RotaryDefaults("qwen3", "Qwen3", rope_theta=10_000.0, head_dim=128, context=32_768)


class TrainingQwen3(rotary.RotaryTraining, Qwen3ForCausalLM):  # type: ignore[misc]  # transformers is untyped
    """A Qwen3 that computes the loss; weights and names are unchanged."""


class Qwen3WithClassifier(RotaryClassifier, Qwen3ForCausalLM):  # type: ignore[misc]
    """A Qwen3 with a second head, named and shaped as `Qwen3ForSequenceClassification`'s."""


def from_hf(
    folder: Path, settings: ModelSettings, vocab_size: int, special: SpecialTokenIds, seed: int
) -> PreTrainedModel:
    """Return `rotary.rotary_from_hf` of a Qwen3."""
    config = SPEC.config(settings, padded_vocabulary(vocab_size), special)
    return rotary.rotary_from_hf(TrainingQwen3, config, folder, vocab_size, seed)


SPEC = ModelSpec(
    config=partial(rotary.rotary_config, Qwen3Config),
    build=TrainingQwen3,
    blocks=rotary.rotary_blocks,
    param_groups=rotary.rotary_param_groups,
    num_params=partial(rotary.rotary_num_params, normalizes_heads=True),
    num_matrix_params=rotary.rotary_num_matrix_params,
    flops_per_token=partial(rotary.rotary_flops_per_token, normalizes_heads=True),
    activation_bytes=partial(rotary.rotary_activation_bytes, normalizes_heads=True),
    check_hf=FOLDER.check,
    shape_of_hf=FOLDER.shape,
    hf_size=FOLDER.size,
    from_hf=from_hf,
    to_hf=partial(rotary.rotary_to_hf, Qwen3ForCausalLM),
    classifier=classifier_spec(Qwen3WithClassifier, rotary.EMBEDDING),
)
