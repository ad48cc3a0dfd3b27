"""What a report shows, read from a run folder, also while the run is writing it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from configs.command_line import parse_settings
from configs.errors import BadInput
from configs.finetune_settings import FinetuneSettings
from configs.schema import RunSettings
from data_prep.lengths import LengthHistogram, length_histogram
from data_prep.manifest import MANIFEST_FILE, Manifest, read_manifest, shard_folder
from train.metrics import METRICS_FILE, HeldOutMetrics, RunMetrics, StepMetrics, ValidationMetrics, read_metrics
from train.order import SampleOrder
from train.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    RESULT_FILE,
    SHARDS_FOLDER,
    RunResult,
    finished_result,
    is_finetuning,
)
from train.samples import LookSample, read_samples
from train.size import parameter_count, planned_steps


@dataclass(frozen=True)
class RunData:
    """The shards that a run trains on."""

    manifest: Manifest
    lengths: LengthHistogram
    """Of the training documents."""


@dataclass(frozen=True)
class TrainedRun:
    """What pre-training and fine-tuning alike leave, whole or under way."""

    folder: Path
    label: str
    """Tells the run from the others in the report."""
    settings: RunSettings | FinetuneSettings
    settings_text: str
    """`config.yaml` as it lies there."""
    environment: dict[str, Any]
    metrics: RunMetrics
    metrics_written: float
    """When the metrics last grew, in seconds since 1970."""
    is_finished: bool

    @property
    def step(self) -> int:
        """The last step logged."""
        return self._last_line.step

    @property
    def tokens(self) -> int:
        """Tokens trained on when the last line was logged."""
        return self._last_line.tokens

    @property
    def _last_line(self) -> StepMetrics | HeldOutMetrics | ValidationMetrics:
        return max((self.metrics.steps[-1], *self.metrics.looks[-1:]), key=lambda line: line.step)

    def training_seconds(self) -> NDArray[np.float64]:
        """Seconds of training up to each logged step, as the speeds logged tell; looks and checkpoints left out."""
        tokens = np.array([0, *(line.tokens for line in self.metrics.steps)], dtype=np.float64)
        speeds = np.array([line.tokens_per_second for line in self.metrics.steps], dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = np.diff(tokens) / speeds
        return np.cumsum(np.where(np.isfinite(seconds), seconds, 0.0))


@dataclass(frozen=True)
class RunRecord(TrainedRun):
    """A pre-training."""

    settings: RunSettings
    result: RunResult | None
    """Of the run as it is set now, or of a shorter run that this one goes on from."""
    samples: tuple[LookSample, ...]
    """Of the looks at held-out text."""
    data: RunData | None
    data_fault: str
    """Why there is no `data`."""

    @property
    def planned_steps(self) -> int | None:
        """Steps that the settings ask for; none where only the missing shards could tell."""
        train = self.settings.train
        if train.steps is None and self.data is None:
            return None
        tokens = self.data.manifest.train.counts.tokens if self.data else 0
        order = SampleOrder(tokens, self.settings.model.block_size, train.seed)
        return planned_steps(train, order.samples_per_epoch)

    @property
    def parameters(self) -> int | None:
        """Of the exported model; none where nothing says how large the vocabulary is."""
        if self.is_finished and self.result is not None:
            return self.result.parameters
        return parameter_count(self.settings.model, self.data.manifest.vocab_size) if self.data else None

    @property
    def bits_per_byte(self) -> float | None:
        """Of the held-out part: over all of it where the run is finished, else at the last look."""
        if self.is_finished and self.result is not None:
            return self.result.bits_per_byte
        return self.metrics.held_out[-1].bits_per_byte if self.metrics.held_out else None


def labels_of(folders: Sequence[Path]) -> list[str]:
    """What tells the runs in `folders` apart: their names, or their paths where names are not distinct."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def holds_finetuning(folder: Path) -> bool:
    """Whether `folder` holds a fine-tuning.

    Raises:
        BadInput: it holds no run.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name the run folder of a `malmoi train`, as in `runs/demo`")
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise BadInput(f"{folder}: no {CONFIG_FILE} here, so this is no run folder; name one that `malmoi train` made")
    return is_finetuning(config)


def logged_metrics(folder: Path, command: str, log_every: int) -> RunMetrics:
    """The metrics of the run in `folder`.

    Raises:
        BadInput: no step is logged.
    """
    metrics = read_metrics(folder)
    if not metrics.steps and metrics.unreadable:
        raise BadInput(
            f"{folder / METRICS_FILE}: no step is logged, and line {metrics.unreadable[0]} is none of ours; put a copy "
            "back"
        )
    if not metrics.steps:
        raise BadInput(
            f"{folder / METRICS_FILE}: no step is logged yet, so there is nothing to show; train with "
            f"`malmoi {command} --config {folder / CONFIG_FILE}` until step {log_every}"
        )
    return metrics


def read_run(folder: Path, label: str) -> RunRecord:
    """The pre-training in `folder`.

    Raises:
        BadInput: it holds no run, or one without metrics.
    """
    config = folder / CONFIG_FILE
    settings = parse_settings(RunSettings, ["--config", str(config)], "malmoi report", "")
    text = config.read_text(encoding="utf-8")
    metrics = logged_metrics(folder, "train", settings.train.log_every)
    result = _result(folder)
    data, fault = _data(folder, settings)
    return RunRecord(
        folder=folder,
        label=label,
        settings=settings,
        settings_text=text,
        environment=read_environment(folder),
        metrics=metrics,
        metrics_written=(folder / METRICS_FILE).stat().st_mtime,
        is_finished=result is not None and result.settings == yaml.safe_load(text),
        result=result,
        samples=read_samples(folder),
        data=data,
        data_fault=fault,
    )


def _result(folder: Path) -> RunResult | None:
    try:
        return finished_result(folder)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{folder / RESULT_FILE}: no result of ours ({error}); delete it and train again") from error


def read_environment(folder: Path) -> dict[str, Any]:
    """What the run was computed with; nothing where that is not known."""
    file = folder / ENVIRONMENT_FILE
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _data(folder: Path, settings: RunSettings) -> tuple[RunData | None, str]:
    """The run's shards, or why they cannot be shown: a report of a run whose shards are gone is still of use."""
    cache = Path(settings.data.cache) if settings.data.cache else folder / SHARDS_FOLDER
    fingerprint = _trained_fingerprint(folder)
    try:
        named = cache / fingerprint if fingerprint else cache
        shards = named if (named / MANIFEST_FILE).is_file() else shard_folder(cache)
        manifest = read_manifest(shards)
        return RunData(manifest, length_histogram(shards, manifest.train)), ""
    except (BadInput, OSError) as error:
        return None, str(error)


def _trained_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the shards that the newest checkpoint was trained on, which a shared cache needs."""
    for state in sorted((folder / "checkpoints").glob("step-*/state.json"), reverse=True):
        try:
            return str(json.loads(state.read_text(encoding="utf-8"))["progress"]["data_fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
