"""Every setting of a fine-tuning. The line under a field is its documentation, as in `configs.schema`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.errors import BadInput
from configs.schema import ParallelSettings, Schedule, TrainSettings

TaskKind = Literal["classification", "entailment", "similarity", "multiple_choice"]


@dataclass(frozen=True)
class TaskSettings:
    """The labelled task that a model is fine-tuned on."""

    kind: TaskKind = "classification"
    """classification of a text; entailment: classification of a pair; similarity: a number for a pair in either order;
    multiple_choice: which of several texts goes with another."""
    train: str = ""
    """File of JSON lines, plain or .gz, that is learnt from."""
    validation: str | None = None
    """File that chooses the best model and ends training early; none: the last model is the result."""
    test: str | None = None
    """File that the result is scored on, and nothing is chosen by; none: there is no test score."""
    fields: tuple[str, ...] = ()
    """Fields of a row that hold the texts, in order; none: `text`; `premise`, `hypothesis`; `sentence1`, `sentence2`;
    or `text`, `choices`. With multiple_choice the last one holds the list; those before it are joined by a space."""
    label: str | None = None
    """Field that holds the answer: a class, a number, or a choice's index from 0; none: `score` for similarity, else
    `label`."""
    limit: int = 0
    """Rows of each file that are read, from its beginning; 0: all."""
    language_model_weight: float = 0.5
    """Weight of the next token's loss beside the task's; 0: none."""


@dataclass(frozen=True)
class FinetuneLoopSettings(TrainSettings):
    """The loop of fine-tuning, which is that of pre-training with GPT-1's settings."""

    global_batch: int = 32
    """Examples an update, over all ranks and accumulation steps."""
    epochs: float = 3.0
    """Passes over the training file, where `steps` is none."""
    learning_rate: float = 6.25e-5
    """Peak learning rate."""
    schedule: Schedule = "linear"
    """Shape of the learning rate after the warm-up; wsd (warm-up, stable, decay) stays at the peak until it decays."""
    final_learning_rate: float = 0.0
    """Learning rate at the last step, as a share of the peak; constant has none."""
    warmup_share: float = 0.002
    """Share of all updates over which the rate rises in a line from 0, where `warmup_steps` is 0."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; biases and norms have none."""
    beta2: float = 0.999
    """AdamW's decay of the second moment."""
    evaluate_tokens: int = TrainSettings.evaluate_tokens
    """Of pre-training alone: a look at the validation file reads all of it. Another value is refused."""
    evaluate_every: int = 0
    """Steps between two looks at the validation file; also after the last step. 0: after each epoch."""
    save_every: int = 0
    """Steps between two checkpoints, of which each look needs one; also after the last step. 0: at each look."""
    keep_best: int = 1
    """Checkpoints kept for their validation loss; the first of them becomes the model."""

    def __post_init__(self) -> None:
        """Refuse a setting that would do nothing.

        Raises:
            BadInput: evaluate_tokens is set.
        """
        if self.evaluate_tokens != TrainSettings.evaluate_tokens:
            raise BadInput(
                f"train.evaluate_tokens {self.evaluate_tokens}: a look of fine-tuning reads the whole validation file; "
                "leave it out, or shorten the file"
            )


@dataclass(frozen=True)
class FinetuneSettings:
    """A fine-tuning, from a model and labelled examples to a classifier and its scores."""

    run: str = "runs/finetune"
    """Run folder: everything that the run writes."""
    init_from: str = ""
    """Folder of the GPT-2 that is fine-tuned, ours or any in Hugging Face form, with its tokenizer."""
    fresh_weights: bool = False
    """Take only shape and tokenizer from init_from and draw the weights afresh, to see what its training is worth."""
    dropout: float = 0.1
    """Dropout of embeddings, attention, residuals and the context vector alike, 0 to 1."""
    patience: int = 0
    """Looks at the validation file without a lower loss after which training ends; 0: it goes on to its last step."""
    task: TaskSettings = field(default_factory=TaskSettings)
    """What is learnt."""
    train: FinetuneLoopSettings = field(default_factory=FinetuneLoopSettings)
    """The loop."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How ranks share the work."""
