"""GPT-1's fine-tuned model (Radford et al., 2018): a linear head on the last hidden state, beside the LM head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from malmoi.configs.finetune import TaskKind
from malmoi.train.models.gpt2 import EMBEDDING, hidden_states

HEAD = "score.weight"


class GPT2WithClassifier(GPT2LMHeadModel):  # type: ignore[misc]  # transformers is untyped
    """A GPT-2 with a second head, named and shaped as `GPT2ForSequenceClassification`'s."""

    def __init__(self, config: GPT2Config, kind: TaskKind, outputs: int) -> None:
        super().__init__(config)
        self._adds_orders = kind == "similarity"
        self.score = nn.Linear(config.n_embd, outputs, bias=False)
        self.score_dropout = nn.Dropout(config.resid_pdrop)

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
        hidden = hidden_states(self.transformer, input_ids)
        vectors = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        if self._adds_orders:
            vectors = vectors.view(-1, sequences, hidden.shape[-1]).sum(1)
        scores = self.score(self.score_dropout(vectors)).reshape(len(hidden) // sequences, -1)
        return scores, self.lm_head(hidden) if with_lm_logits else None


def with_classifier(model: GPT2LMHeadModel, kind: TaskKind, num_classes: int, seed: int) -> GPT2WithClassifier:
    """Return `model` with a randomly initialized head, the same for the same seed.

    Args:
        num_classes: of a classification; the other kinds have one score a vector.
    """
    torch.manual_seed(seed)
    made = GPT2WithClassifier(model.config, kind, num_classes if kind in ("classification", "entailment") else 1)
    made.load_state_dict(model.state_dict(), strict=False)
    made.tie_weights()
    nn.init.normal_(made.score.weight, std=model.config.initializer_range)
    return made


def export_classifier(
    weights: Mapping[str, Tensor],
    config: GPT2Config,
    kind: TaskKind,
    vocab_size: int,
    pad: int,
    classes: tuple[str, ...],
    folder: Path,
) -> None:
    """Write `folder` so that `GPT2ForSequenceClassification.from_pretrained` loads it: fp32, without padding rows.

    Args:
        weights: a `GPT2WithClassifier`'s parameters by name, full, the vocabulary padded.
        classes: their names in the order of the outputs; for similarity and choices, which have one output, none.
    """
    outputs = len(weights[HEAD])
    named: dict[str, Any] = {"num_labels": outputs}
    if outputs > 1:
        named = {"id2label": dict(enumerate(classes)), "label2id": {name: n for n, name in enumerate(classes)}}
    if kind == "similarity":
        named["problem_type"] = "regression"
    exported = GPT2Config(
        **{**config.to_diff_dict(), "vocab_size": vocab_size, "use_cache": True, "pad_token_id": pad}, **named
    )
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(exported)
    trimmed = {name: tensor.detach().float().cpu() for name, tensor in weights.items()}
    trimmed[EMBEDDING] = trimmed[EMBEDDING][:vocab_size].clone()
    model.load_state_dict(trimmed, assign=True)
    model.save_pretrained(folder)
