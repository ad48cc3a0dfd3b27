"""Settings of what a run writes: checkpoints, evaluations, logs and samples."""

from dataclasses import dataclass, field
from typing import Any

from malmoi.configs.ranges import (
    ClosedUnitInterval,
    FiniteNonNegative,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


@dataclass(frozen=True)
class CheckpointSettings:
    """Checkpoints."""

    every: NonNegativeInt = 250
    """Steps between two checkpoints; there is always one after the last step. 0: only that one."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept; an older one is deleted only after the newer one is complete."""
    keep_best: NonNegativeInt = 0
    """Checkpoints of lowest validation loss kept besides, among evaluated steps."""
    async_save: bool = True
    """Write checkpoints in the background; training waits only for a copy of its state in host memory."""
    allow_data_change: bool = False
    """Resume from a checkpoint although the shards differ from those it was trained on."""
    dir: str | None = None
    """Folder or fsspec URL that holds the checkpoints; null: `checkpoints` in the run folder."""


@dataclass(frozen=True)
class EvalSettings:
    """Evaluation on the validation split during training."""

    every: NonNegativeInt = 250
    """Steps between two evaluations; there is always one after the last step. 0: only that one."""
    tokens: PositiveInt = 1_000_000
    """Tokens read by one evaluation at most; the last one reads the whole split."""
    sample_tokens: NonNegativeInt = 40
    """New tokens in the sample that each evaluation writes to samples.jsonl; 0: no samples before the end."""


@dataclass(frozen=True)
class LogSettings:
    """Metrics, trackers and profiles."""

    every: PositiveInt = 10
    """Steps between two lines of metrics.jsonl."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers that get the configuration and all metrics: Accelerate's by name (tensorboard, wandb, mlflow, trackio,
    comet_ml, ...), or a GeneralTracker of your own as `package.module:Class`."""
    tracker_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Arguments for a tracker's initialization, by its name, such as {wandb: {entity: my-team}}."""
    profile_steps: tuple[PositiveInt, ...] = ()
    """Steps, from 1, whose torch profiler traces are written to `profile` in the run folder."""


@dataclass(frozen=True)
class SamplingSettings:
    """How text is sampled: the options of `transformers`' `generate`."""

    prompt: str = "이순신"
    """Prompt; a leading `<s>` is understood, since every prompt begins with it."""
    num_return_sequences: PositiveInt = 3
    """Samples a prompt."""
    max_new_tokens: PositiveInt = 100
    """Tokens added to the prompt at most."""
    max_length: PositiveInt | None = None
    """Tokens in all at most, prompt included; where set, it replaces max_new_tokens."""
    min_new_tokens: NonNegativeInt = 0
    """Tokens added before the text may end."""
    do_sample: bool = True
    """Sample tokens by their probability; false: greedy or beam search."""
    temperature: FiniteNonNegative = 1.0
    """Divides the logits."""
    top_k: NonNegativeInt = 50
    """Sample from the k most probable tokens only; 0: all."""
    top_p: ClosedUnitInterval = 1.0
    """Sample from the smallest set of tokens with this total probability."""
    min_p: ClosedUnitInterval = 0.0
    """Drop tokens below this fraction of the most probable token's probability; 0: none."""
    repetition_penalty: PositiveFloat = 1.0
    """Above 1, tokens already in the text become less probable."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """No n-gram of this size occurs twice; 0: no limit."""
    num_beams: PositiveInt = 1
    """Beams of beam search; 1: no beam search."""
    length_penalty: float = 1.0
    """With beams, above 0 prefers longer texts, below 0 shorter ones."""
    seed: NonNegativeInt = 42
    """Seed set before each prompt, so that a prompt's samples do not depend on the others."""
