"""All settings of a fine-tuning run. The defaults are GPT-1's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from malmoi.configs.corpus import Encoding, OnError, Quotes
from malmoi.configs.optim import OptimSettings, ScheduleName, ScheduleSettings
from malmoi.configs.outputs import CheckpointSettings, LogSettings
from malmoi.configs.ranges import (
    ClosedUnitInterval,
    FiniteNonNegative,
    HalfOpenUnitInterval,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from malmoi.configs.train import ParallelSettings, RollbackSettings, TrainSettings

TaskKind = Literal["classification", "entailment", "similarity", "multiple_choice"]
TASK_LISTS = ("task.fields", "task.choices")
"""Settings that take several values in a row on the command line."""


@dataclass(frozen=True)
class TaskSettings:
    """The labeled task."""

    kind: TaskKind = "classification"
    """classification of a text; entailment: classification of a pair; similarity: a score for a pair in either order;
    multiple_choice: which of several texts fits another."""
    train: str = ""
    """Training file, or folder, glob or URL: .jsonl, .ndjson, .json, .csv, .tsv, .txt (a table with tabs), .parquet or
    .arrow, each also as .gz, .zst, .xz or .bz2, or a folder saved by `datasets`."""
    validation: str | None = None
    """File that selects the best checkpoint and stops early; null: the last checkpoint is the result."""
    test: str | None = None
    """File that the result is scored on; selects nothing. null: no test score."""
    fields: tuple[str, ...] = ()
    """Fields or columns of a row that hold the texts, in order; dots reach into nested objects. Default: `text`;
    `premise`, `hypothesis`; `sentence1`, `sentence2`; or `text`, `choices`. With multiple_choice the last one holds the
    list, and those before it are joined by a space."""
    choices: tuple[str, ...] = ()
    """Fields that hold one choice each, with multiple_choice, where none holds the list; `fields` are the context."""
    label: str | None = None
    """Field that holds the label: a class, a number, or a choice's index from 0; null: `score` for similarity, else
    `label`. A whole number is one class however it is written: 1, 1.0 or "1"."""
    encoding: Encoding = "utf-8"
    """Character encoding, decoded strictly; auto: a file is ISO-2022-KR if it says so, else UTF-8, else CP949."""
    quotes: Quotes = "auto"
    """What a double quote is in .csv, .tsv and .txt: csv: it encloses a field (RFC 4180); none: text; auto: csv, but
    text in a table with tabs, as NSMC's, where it is no quoting and each line has the header's number of fields."""
    on_error: OnError = "stop"
    """On a row with an empty text, without a label, or broken: stop and name it, or skip it and count it by cause."""
    max_error_rate: ClosedUnitInterval = 0.01
    """Share of skipped rows above which `on_error: skip` fails too."""
    limit: NonNegativeInt = 0
    """Usable rows read from the beginning of each file; 0: all."""
    lm_loss_weight: FiniteNonNegative = 0.5
    """Weight of the auxiliary language modeling loss; 0: none."""


@dataclass(frozen=True)
class FinetuneTrainSettings(TrainSettings):
    """The training loop, with GPT-1's batch and length."""

    global_batch_size: PositiveInt = 32
    """Examples an optimizer step, over all ranks and accumulation steps."""
    epochs: PositiveFloat = 3.0
    """Passes over the training file, where `max_steps` is null."""


@dataclass(frozen=True)
class FinetuneOptimSettings(OptimSettings):
    """The optimizer, with GPT-1's learning rate."""

    lr: FiniteNonNegative = 6.25e-5
    """Peak learning rate."""
    betas: tuple[HalfOpenUnitInterval, HalfOpenUnitInterval] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: FiniteNonNegative = 0.01
    """Decoupled weight decay of matrices; biases and norms have none."""


@dataclass(frozen=True)
class FinetuneScheduleSettings(ScheduleSettings):
    """The learning rate schedule: a short warmup, then linear decay to 0."""

    name: ScheduleName = "linear"
    """Decay after the warmup; wsd (warmup-stable-decay) stays at the peak until its decay phase."""
    min_lr_ratio: ClosedUnitInterval = 0.0
    """Learning rate at the last step as a fraction of the peak; constant has no decay."""
    warmup_ratio: ClosedUnitInterval = 0.002
    """Fraction of all steps that is warmup, where `warmup_steps` is 0."""


@dataclass(frozen=True)
class FinetuneCheckpointSettings(CheckpointSettings):
    """Checkpoints, of which each evaluation needs one."""

    every: NonNegativeInt = 0
    """Steps between two checkpoints; must divide eval.every. 0: at each evaluation."""
    keep_best: NonNegativeInt = 1
    """Checkpoints of lowest validation loss kept; the first of them becomes the model."""


@dataclass(frozen=True)
class FinetuneEvalSettings:
    """Evaluation on the validation file, which is always read whole."""

    every: NonNegativeInt = 0
    """Steps between two evaluations; there is always one after the last step. 0: after each epoch."""
    patience: NonNegativeInt = 0
    """Evaluations without a lower loss after which training stops early; 0: never."""
    baselines: bool = True
    """Score what needs no pre-training on the same rows: regressions over words and over character n-grams."""


@dataclass(frozen=True)
class FinetuneSettings:
    """A fine-tuning run, from a model and labeled examples to a classifier and its scores."""

    run: str = "runs/finetune"
    """Run folder, which gets everything that the run writes."""
    init_from: str = ""
    """Folder of the GPT-2 that is fine-tuned, ours or any in Hugging Face form, with its tokenizer."""
    random_init: bool = False
    """Take only shape and tokenizer of init_from and draw random weights: the baseline without pre-training."""
    dropout: HalfOpenUnitInterval = 0.1
    """Dropout of embeddings, attention, residuals and the classifier's input."""
    plugins: tuple[str, ...] = ()
    """Python modules imported first, which register optimizers, schedules, ... of your own."""
    task: TaskSettings = field(default_factory=TaskSettings)
    """The labeled task."""
    train: FinetuneTrainSettings = field(default_factory=FinetuneTrainSettings)
    """The training loop."""
    optim: FinetuneOptimSettings = field(default_factory=FinetuneOptimSettings)
    """The optimizer."""
    schedule: FinetuneScheduleSettings = field(default_factory=FinetuneScheduleSettings)
    """The learning rate schedule."""
    rollback: RollbackSettings = field(default_factory=RollbackSettings)
    """What happens when the loss diverges."""
    checkpoint: FinetuneCheckpointSettings = field(default_factory=FinetuneCheckpointSettings)
    """Checkpoints."""
    eval: FinetuneEvalSettings = field(default_factory=FinetuneEvalSettings)
    """Evaluation during training."""
    log: LogSettings = field(default_factory=LogSettings)
    """Metrics and trackers."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """Ranks."""
