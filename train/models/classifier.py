"""GPT-1's fine-tuned model (Radford et al., 2018): a linear head on the last hidden state, beside the LM head."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from malmoi.configs.finetune import TaskKind
from malmoi.train.models import gpt2, rotary
from malmoi.train.models.spec import ClassifierSpec

HEAD = "score.weight"


class WithClassifier:
    """Mixed in before a causal language model of `transformers`: a second head, named and shaped as that of its class
    for sequence classification."""

    def __init__(self, config: PreTrainedConfig, kind: TaskKind, outputs: int) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # the stock class comes next
        self._adds_orders = kind == "similarity"
        self.score = nn.Linear(config.hidden_size, outputs, bias=False)
        self.score_dropout = nn.Dropout(self.head_dropout())

    def head_dropout(self) -> float:
        """Return the dropout before the head."""
        raise NotImplementedError

    def last_hidden_states(self, input_ids: Tensor) -> Tensor:
        """Return the last hidden states of full sequences, `[batch, length, hidden size]`."""
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor, lengths: Tensor, sequences: int, with_lm_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return scores of examples, and the logits of each next token.

        Right padding needs no mask: under causal attention no token before it sees it.

        Args:
            input_ids: `int64[examples x sequences, tokens]`.
            lengths: `int64[examples x sequences]`, of which the last token's vector is the sequence's.
            sequences: of one example: both orders of a pair, whose vectors are added, or its choices.
            with_lm_logits: whether the logits are wanted.

        Returns:
            `[examples, classes | choices | 1]`, and `[examples x sequences, tokens, padded vocabulary]` or None.
        """
        hidden = self.last_hidden_states(input_ids)
        vectors = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        if self._adds_orders:
            vectors = vectors.view(-1, sequences, hidden.shape[-1]).sum(1)
        scores = self.score(self.score_dropout(vectors)).reshape(len(hidden) // sequences, -1)
        return scores, self.lm_head(hidden) if with_lm_logits else None  # type: ignore[attr-defined]  # the stock class has it


class GPT2WithClassifier(WithClassifier, GPT2LMHeadModel):  # type: ignore[misc]  # transformers is untyped
    """A GPT-2 with a second head, named and shaped as `GPT2ForSequenceClassification`'s."""

    def head_dropout(self) -> float:
        return float(self.config.resid_pdrop)

    def last_hidden_states(self, input_ids: Tensor) -> Tensor:
        return gpt2.hidden_states(self.transformer, input_ids)


class RotaryClassifier(WithClassifier):
    """Mixed in before a Llama or a Qwen3."""

    def head_dropout(self) -> float:
        return float(self.config.attention_dropout)  # type: ignore[attr-defined]  # the stock class has it

    def last_hidden_states(self, input_ids: Tensor) -> Tensor:
        return rotary.hidden_states(self.model, input_ids)  # type: ignore[attr-defined]  # the stock class has it


def with_classifier(
    made_class: type[PreTrainedModel], model: PreTrainedModel, kind: TaskKind, num_classes: int, seed: int
) -> PreTrainedModel:
    """Return `model` with a randomly initialized head, the same for the same seed.

    Args:
        made_class: a `WithClassifier`.
        num_classes: of a classification; the other kinds have one score a vector.
    """
    torch.manual_seed(seed)
    made = made_class(model.config, kind, num_classes if kind in ("classification", "entailment") else 1)
    made.load_state_dict(model.state_dict(), strict=False)
    made.tie_weights()
    nn.init.normal_(made.score.weight, std=model.config.initializer_range)
    return made


def export_classifier(
    embedding: str,
    weights: Mapping[str, Tensor],
    config: PreTrainedConfig,
    kind: TaskKind,
    vocab_size: int,
    pad: int,
    classes: tuple[str, ...],
    folder: Path,
) -> None:
    """Write `folder` so that `AutoModelForSequenceClassification.from_pretrained` loads it: fp32, without padding rows.

    Args:
        embedding: name of the embedding's weights.
        weights: a `WithClassifier`'s parameters by name, full, the vocabulary padded.
        classes: their names in the order of the outputs; for similarity and choices, which have one output, none.
    """
    outputs = len(weights[HEAD])
    named: dict[str, Any] = {"num_labels": outputs}
    if outputs > 1:
        named = {"id2label": dict(enumerate(classes)), "label2id": {name: n for n, name in enumerate(classes)}}
    if kind == "similarity":
        named["problem_type"] = "regression"
    changed = {"vocab_size": vocab_size, "use_cache": True, "pad_token_id": pad}
    exported = type(config)(**{**config.to_diff_dict(), **changed}, **named)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(exported)
    # An output matrix of its own predicts tokens, which this model does not.
    trimmed = {name: tensor.detach().float().cpu() for name, tensor in weights.items() if name in model.state_dict()}
    trimmed[embedding] = trimmed[embedding][:vocab_size].clone()
    model.load_state_dict(trimmed, assign=True)
    model.save_pretrained(folder)


def classifier_spec(made_class: type[PreTrainedModel], embedding: str) -> ClassifierSpec:
    """Return a family's entry.

    Args:
        made_class: its `WithClassifier`.
        embedding: name of its embedding's weights.
    """
    return ClassifierSpec(partial(with_classifier, made_class), partial(export_classifier, embedding))
