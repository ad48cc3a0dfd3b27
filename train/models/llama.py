"""Llama (Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023), as a LlamaForCausalLM."""

from transformers import LlamaConfig, LlamaForCausalLM

from malmoi.train.models import rotary
from malmoi.train.models.classifier import RotaryClassifier, classifier_spec
from malmoi.train.models.rotary_folder import RotaryDefaults

FOLDER = RotaryDefaults("llama", "Llama", rope_theta=10_000.0, head_dim=None, context=2048)


class TrainingLlama(rotary.RotaryTraining, LlamaForCausalLM):  # type: ignore[misc]  # transformers is untyped
    """A Llama that computes the loss; weights and names are unchanged."""


class LlamaWithClassifier(RotaryClassifier, LlamaForCausalLM):  # type: ignore[misc]  # as above
    """A Llama with a second head, named and shaped as `LlamaForSequenceClassification`'s."""


SPEC = rotary.rotary_spec(
    LlamaConfig,
    LlamaForCausalLM,
    TrainingLlama,
    FOLDER,
    classifier_spec(LlamaWithClassifier, rotary.EMBEDDING),
    normalizes_heads=False,
)
