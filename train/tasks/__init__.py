"""What a training step computes, by the names that `objective` gives it."""

from collections.abc import Callable, Sequence

from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.mixture import SourceShards
from malmoi.registry import Registry
from malmoi.train.data.dataset import TokenDataset
from malmoi.train.tasks import language_modeling
from malmoi.train.tasks.base import EvalResult, Task

BuildTask = Callable[[RunSettings, TokenDataset, Sequence[SourceShards], int, int], Task]
"""From a run's settings, its samples, its shards, the size of the vocabulary and the number of steps."""

TASKS: Registry[BuildTask] = Registry({"language_modeling": language_modeling.build})

__all__ = ["TASKS", "BuildTask", "EvalResult", "Task"]
