"""What a report shows of a run, read from its folder, also while the run is still writing it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from malmoi.checksums import checksum
from malmoi.configs.finetune import TASK_LISTS, FinetuneSettings
from malmoi.configs.parser import parse_settings
from malmoi.configs.run import RunSettings
from malmoi.data_prep.shards.lengths import LengthHistogram, length_histogram
from malmoi.data_prep.shards.manifest import MANIFEST_FILE, Manifest, read_manifest, shard_folder
from malmoi.errors import UserError
from malmoi.train.checkpoint.storage import LAST_FILE, LocalStorage, checkpoint_step
from malmoi.train.data.sample_order import SampleOrder, planned_steps
from malmoi.train.finetune_result import FinetuneResult, finished_finetuning
from malmoi.train.metrics.log_file import METRICS_FILE
from malmoi.train.metrics.records import (
    AnyRecord,
    RunMetrics,
    StepMetrics,
    TaskValMetrics,
    ValMetrics,
    read_metrics,
)
from malmoi.train.metrics.sample_log import EvalSample, read_eval_samples
from malmoi.train.run_dir import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    MODEL_FOLDER,
    SHARDS_FOLDER,
    RunResult,
    checkpoint_url,
    finished_result,
    is_finetuning,
)


@dataclass(frozen=True)
class Run:
    """What pre-training and fine-tuning both leave, finished or not."""

    folder: Path
    label: str
    """Distinguishes the run from the others in the report."""
    settings: RunSettings | FinetuneSettings
    metrics: RunMetrics
    result: RunResult | FinetuneResult | None
    """Of the run as configured now, or of a shorter run that this one continues."""

    @cached_property
    def config(self) -> str:
        """The content of `config.yaml`."""
        return (self.folder / CONFIG_FILE).read_text(encoding="utf-8")

    @cached_property
    def is_finished(self) -> bool:
        """Whether the result is of the run as configured now."""
        return self.result is not None and self.result.settings == yaml.safe_load(self.config)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the run was computed with; empty where that is not recorded."""
        try:
            recorded = json.loads((self.folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return recorded if isinstance(recorded, dict) else {}

    @property
    def last_write(self) -> float:
        """When the metrics last grew, in seconds since 1970."""
        return (self.folder / METRICS_FILE).stat().st_mtime

    @property
    def step(self) -> int:
        """The last step logged."""
        return self._last_record.step

    @property
    def tokens_seen(self) -> int:
        """Training tokens consumed until the last step logged."""
        return self._last_record.tokens_seen

    @property
    def _last_record(self) -> StepMetrics | ValMetrics | TaskValMetrics:
        return max((self.metrics.steps[-1], *self.metrics.evaluations[-1:]), key=lambda record: record.step)

    @property
    def planned_steps(self) -> int | None:
        """Steps that the settings ask for; none where they do not tell."""
        return self.settings.train.max_steps

    def training_seconds(self) -> NDArray[np.float64]:
        """Return the seconds of training until each logged step, without evaluations and checkpoints, by the logged
        speeds: float64 of shape (steps,)."""
        tokens = np.array([0, *(record.tokens_seen for record in self.metrics.steps)], dtype=np.float64)
        speeds = np.array([record.tokens_per_sec for record in self.metrics.steps], dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = np.diff(tokens) / speeds
        return np.cumsum(np.where(np.isfinite(seconds), seconds, 0.0))

    def positions(self, records: Sequence[AnyRecord]) -> NDArray[np.float64]:
        """Return the tokens seen, seconds of training and steps of each record: float64 of shape (3, records)."""
        # Steps go back at a rollback, tokens never do: they give the time.
        tokens = np.array([record.tokens_seen for record in records], dtype=np.float64)
        logged = np.array([0, *(record.tokens_seen for record in self.metrics.steps)], dtype=np.float64)
        time = np.interp(tokens, logged, [0.0, *self.training_seconds()])
        return np.array([tokens, time, [record.step for record in records]])


@dataclass(frozen=True)
class Shards:
    """The shards that a run trains on."""

    manifest: Manifest
    lengths: LengthHistogram
    """Of the training documents."""


@dataclass(frozen=True)
class PretrainRun(Run):
    """A pre-training run."""

    settings: RunSettings
    result: RunResult | None
    samples: tuple[EvalSample, ...]
    shards: Shards | None
    shards_error: str
    """Why there are no `shards`."""

    @property
    def planned_steps(self) -> int | None:
        """Steps that the settings ask for; none where only the missing shards would tell."""
        train = self.settings.train
        if train.max_steps is None and self.shards is None:
            return None
        tokens = self.shards.manifest.train.counts.tokens if self.shards else 0
        order = SampleOrder(tokens, self.settings.model.block_size, train.seed)
        return planned_steps(train, order.samples_per_epoch)

    @property
    def parameters(self) -> int | None:
        """Of the exported model; none where the run folder does not tell yet."""
        recorded = self.result.parameters if self.result else self.environment.get("parameters")
        return recorded if isinstance(recorded, int) else None

    @property
    def bits_per_byte(self) -> float | None:
        """Of the complete validation split where the run is finished, else of the last evaluation."""
        if self.is_finished and self.result is not None:
            return self.result.bits_per_byte
        return self.metrics.vals[-1].bpb if self.metrics.vals else None

    @property
    def vocab_size(self) -> int | None:
        """Of the tokenizer, which may have fewer tokens than the settings ask for, or be another than they describe;
        none without shards."""
        return None if self.shards is None else self.shards.manifest.vocab_size

    @property
    def validation_text(self) -> str | None:
        """A checksum of what decides the validation split's text, whatever the tokenizer; none without shards."""
        if self.shards is None:
            return None
        manifest = self.shards.manifest
        settings = {name: value for name, value in manifest.settings.items() if name != "data.shard_tokens"}
        sources = sorted([source.blake2b, source.encoding] for source in manifest.sources)
        return checksum(json.dumps([sources, settings], sort_keys=True).encode())


@dataclass(frozen=True)
class FinetuneRun(Run):
    """A fine-tuning run."""

    settings: FinetuneSettings
    result: FinetuneResult | None


def run_labels(folders: Sequence[Path]) -> list[str]:
    """Return the names of the run folders, or their paths where names repeat."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def validation_note(runs: Sequence[PretrainRun]) -> str | None:
    """Return why bits per byte of these runs do not compare, and what does; none where they do."""
    labels: dict[str | None, list[str]] = {}
    for run in runs:
        labels.setdefault(run.validation_text, []).append(run.label)
    unknown = labels.pop(None, [])
    models = " ".join(shlex.quote(str(run.folder / MODEL_FOLDER)) for run in runs)
    remedy = f"to compare them on one text: malmoi evaluate --model {models} --data TEXT"
    if len(labels) > 1:
        groups = "; ".join(", ".join(group) for group in labels.values())
        return f"The runs are validated on different texts ({groups}), so their bits per byte do not compare; {remedy}"
    if unknown and len(runs) > 1:
        return (
            f"The shards of {', '.join(unknown)} are not there, so whether all runs are validated on the same text, "
            f"and their bits per byte compare, is not known; {remedy}"
        )
    return None


def read_run(folder: Path, label: str) -> PretrainRun | FinetuneRun:
    """Read the run in `folder`.

    Raises:
        UserError: it holds no run, a file of it is not valid, or no step is logged yet.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the run folder of a `malmoi train`, as in `runs/demo`")
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder}: no {CONFIG_FILE} here, so this is no run folder; name one that `malmoi train` made")
    argv = ["--config", str(file)]
    if is_finetuning(file):
        tuning = parse_settings(FinetuneSettings, argv, "malmoi report", "", lists=TASK_LISTS)
        metrics = _logged_metrics(folder, "finetune", tuning.log.every)
        return FinetuneRun(folder, label, tuning, metrics, finished_finetuning(folder))
    settings = parse_settings(RunSettings, argv, "malmoi report", "")
    metrics = _logged_metrics(folder, "train", settings.log.every)
    result = finished_result(folder)
    shards, error = _shards(folder, settings)
    return PretrainRun(folder, label, settings, metrics, result, read_eval_samples(folder), shards, error)


def _logged_metrics(folder: Path, command: str, log_every: int) -> RunMetrics:
    metrics = read_metrics(folder)
    if not metrics.steps:
        invalid = f", and line {metrics.unreadable[0]} is not valid" if metrics.unreadable else ""
        raise UserError(
            f"{folder / METRICS_FILE}: no step is logged yet{invalid}, so there is nothing to show; train with "
            f"`malmoi {command} --config {folder / CONFIG_FILE}` until step {log_every}"
        )
    return metrics


def _shards(folder: Path, settings: RunSettings) -> tuple[Shards | None, str]:
    """The run's shards, or why they cannot be shown: a report is of use without them."""
    cache = Path(settings.data.cache) if settings.data.cache else folder / SHARDS_FOLDER
    fingerprint = _trained_fingerprint(LocalStorage(checkpoint_url(folder, settings.checkpoint)))
    try:
        named = cache / fingerprint if fingerprint else cache
        shards = named if (named / MANIFEST_FILE).is_file() else shard_folder(cache)
        manifest = read_manifest(shards)
        return Shards(manifest, length_histogram(shards, manifest.train)), ""
    except (UserError, OSError) as error:
        return None, str(error)


def _trained_fingerprint(checkpoints: LocalStorage) -> str | None:
    """The fingerprint of the shards that the newest checkpoint was trained on, which finds them in a shared cache."""
    steps = {name: step for name in checkpoints.names() if (step := checkpoint_step(name)) is not None}
    for name in sorted(steps, key=steps.__getitem__, reverse=True):
        try:
            return str(json.loads(checkpoints.read_file(name, LAST_FILE))["state"]["data_fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
