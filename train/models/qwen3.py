"""Qwen3 (Yang et al., "Qwen3 Technical Report", 2025), a Llama whose queries and keys are normalized, as a
Qwen3ForCausalLM."""

from transformers import Qwen3Config, Qwen3ForCausalLM

from malmoi.train.models import rotary
from malmoi.train.models.classifier import RotaryClassifier, classifier_spec
from malmoi.train.models.rotary_folder import RotaryDefaults

FOLDER = RotaryDefaults("qwen3", "Qwen3", rope_theta=10_000.0, head_dim=128, context=32_768)


class TrainingQwen3(rotary.RotaryTraining, Qwen3ForCausalLM):  # type: ignore[misc]  # transformers is untyped
    """A Qwen3 that computes the loss; weights and names are unchanged."""


class Qwen3WithClassifier(RotaryClassifier, Qwen3ForCausalLM):  # type: ignore[misc]  # as above
    """A Qwen3 with a second head, named and shaped as `Qwen3ForSequenceClassification`'s."""


SPEC = rotary.rotary_spec(
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainingQwen3,
    FOLDER,
    classifier_spec(Qwen3WithClassifier, rotary.EMBEDDING),
    normalizes_heads=True,
)
