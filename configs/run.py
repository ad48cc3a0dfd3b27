"""All settings of a pre-training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from malmoi.configs.corpus import CorpusSettings, TokenizerSettings
from malmoi.configs.data import DataSettings
from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings, ScheduleSettings
from malmoi.configs.outputs import CheckpointSettings, EvalSettings, LogSettings, SamplingSettings
from malmoi.configs.train import ParallelSettings, RollbackSettings, TrainSettings

TaskName = Literal["language_modeling"] | str


@dataclass(frozen=True)
class RunSettings:
    """A pre-training run, from text to samples."""

    run: str = "runs/default"
    """Run folder, which gets everything that the run writes."""
    init_from: str | None = None
    """Folder of a GPT-2 to continue pre-training from, ours or any in Hugging Face form, with its tokenizer unless
    tokenizer.path names another; null: random weights."""
    init_resize: bool = False
    """Resize the embeddings of init_from's model to the tokenizer's vocabulary, and its positions to block_size."""
    plugins: tuple[str, ...] = ()
    """Python modules imported first, which register models, optimizers, schedules, readers, ... of your own."""
    objective: TaskName = "language_modeling"
    """The task that is learned: what a training step computes."""
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    """The training text."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    """The tokenizer."""
    data: DataSettings = field(default_factory=DataSettings)
    """Shards and samples."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """Architecture and shape."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """The training loop."""
    optim: OptimSettings = field(default_factory=OptimSettings)
    """The optimizer."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """The learning rate schedule."""
    rollback: RollbackSettings = field(default_factory=RollbackSettings)
    """What happens when the loss diverges."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """Checkpoints."""
    eval: EvalSettings = field(default_factory=EvalSettings)
    """Evaluation during training."""
    log: LogSettings = field(default_factory=LogSettings)
    """Metrics and trackers."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """Ranks."""
    generate: SamplingSettings = field(default_factory=SamplingSettings)
    """The samples that a finished run shows."""
