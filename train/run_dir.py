"""What a run folder holds besides checkpoints, and what must be there before training begins."""

import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from malmoi.atomic_io import write_atomic
from malmoi.checked_json import DamagedFileError, checked_json, read_checked_json
from malmoi.checksums import FileRecord, file_record
from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.outputs import CheckpointSettings
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.build import records_its_corpus, tokenizer_build, tokenizer_damage
from malmoi.data_prep.pipeline.mixture import SourceShards, prepare_sources
from malmoi.data_prep.tokenizer.encode import check_tokenizer
from malmoi.data_prep.tokenizer.train import TOKENIZER_FILE
from malmoi.errors import RunFailed, UserError, one_line
from malmoi.ranks import is_main_rank, launched_ranks
from malmoi.registry import registry_entry
from malmoi.train.checkpoint.storage import checkpoint_step, open_storage
from malmoi.train.metrics.log_file import METRICS_FILE, SAMPLES_FILE

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
RESULT_FILE = "result.json"
PREDICTIONS = "predictions_"
"""Beginning of the names of files with a fine-tuned model's answers."""
TOKENIZER_FOLDER, SHARDS_FOLDER, MODEL_FOLDER = "tokenizer", "shards", "model"
CHECKPOINTS_FOLDER = "checkpoints"
FIXED = (
    *("init_", "objective", "tokenizer.", "model.", "data.document_mask", "data.seq_len_warmup"),
    *("train.seed", "optim.name"),
)
"""Beginnings of the names of settings that a run keeps to its end."""
FINETUNING_FIXED = ("init_from", "random_init", "dropout", "task.", "train.seed", "optim.name")
"""The same of a fine-tuning run."""
HYPERPARAMETERS = frozenset(
    {
        *("train.global_batch_size", "optim.lr", "optim.betas", "optim.eps", "optim.weight_decay"),
        *("optim.max_grad_norm", "schedule.name", "schedule.warmup_steps", "schedule.warmup_ratio"),
        *("schedule.decay_ratio", "schedule.min_lr_ratio"),
    }
)
"""Settings that may change during a run, and that its weights depend on."""
log = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")


@dataclass(frozen=True)
class SettingChange:
    """A setting that is no longer what the folder's run was started with last."""

    name: str
    text: str


@dataclass(frozen=True)
class PreparedRun:
    """A run whose tokenizer and shards are on disk."""

    folder: Path
    tokenizer: Path
    sources: tuple[SourceShards, ...]
    """One, or several with weights."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves in `result.json`."""

    settings: dict[str, Any]
    steps: int
    parameters: int
    val_loss: float | None
    bits_per_byte: float | None
    prompt: str
    samples: tuple[str, ...]
    files: tuple[FileRecord, ...] = ()
    """The small files beside it, as they were when it was written; see `recorded_files`."""


def checkpoint_url(run: Path, settings: CheckpointSettings) -> str:
    """Return where the checkpoints of a run are, as a path or URL."""
    return settings.dir or str(run / CHECKPOINTS_FOLDER)


def prepare_run(settings: RunSettings) -> PreparedRun:
    """Build tokenizer and shards unless they are there, and record the settings of a new run. Any number of ranks may
    call this, before they know each other.

    Raises:
        UserError: the corpus, the tokenizer or the run folder is not usable.
    """
    with no_empty_folder(Path(settings.run)):
        return _prepared_run(settings)


def _prepared_run(settings: RunSettings) -> PreparedRun:
    folder = make_run_dir(settings, FIXED)
    if settings.init_from is not None:
        _check_init_model(settings.init_from, settings)
    tokenizer = prepare_tokenizer(settings, folder)
    if settings.init_from is not None:
        from malmoi.train.models.init_from import check_init_fit

        check_init_fit(settings.init_from, settings, tokenizer)
    sources = prepare_sources(
        settings.corpus, settings.data, tokenizer, _shard_cache(settings, folder), settings.plugins
    )
    if is_main_rank() and not (folder / CONFIG_FILE).is_file():
        # A folder with settings in it may be training: they are replaced when these train here, and not before.
        record_settings(folder, settings)
    return PreparedRun(folder, tokenizer, sources)


def prepare_tokenizer(settings: RunSettings, folder: Path) -> Path:
    """Return the folder of the run's tokenizer: the one that the settings name, or one trained on the corpus, in the
    run folder.

    One of another corpus or of other settings is replaced until a checkpoint depends on it. From then on it is kept:
    the settings may not change, and other text makes other shards, which resuming refuses.

    Raises:
        UserError: corpus or tokenizer are not usable, or the one in the run folder can neither be kept nor replaced.
    """
    named = settings.tokenizer.path or settings.init_from
    if named is not None:
        check_tokenizer(Path(named))
        return Path(named)
    own = folder / TOKENIZER_FOLDER
    has_tokenizer, is_needed = (own / TOKENIZER_FILE).is_file(), _has_checkpoint(folder, settings)
    if is_needed and has_tokenizer and not tokenizer_damage(own):
        return own
    if is_needed and settings.checkpoint.allow_data_change:
        raise UserError(
            f"{own}: gone or damaged, and one trained on changed data would not fit the checkpoints; restore it, or "
            "choose another --run"
        )
    wanted = tokenizer_build(settings.corpus, settings.tokenizer, _shard_cache(settings, folder))
    is_replaced = has_tokenizer and not (own / wanted.marker).is_file()
    if is_replaced and not records_its_corpus(own):
        raise UserError(
            f"{own}: does not record what text it was trained on; delete it, or choose it with --tokenizer.path {own}"
        )
    if is_replaced:
        # Whoever trains here exports it.
        with run_lock(folder):
            log.warning("%s: made of another corpus or with other settings; a new one takes its place", own)
    show_progress = is_main_rank() and sys.stderr.isatty()
    return wanted.into(own, show_progress, may_build=is_main_rank() or not is_replaced)


def _shard_cache(settings: RunSettings, folder: Path) -> Path:
    return Path(settings.data.cache) if settings.data.cache else folder / SHARDS_FOLDER


def _check_init_model(init_from: str, settings: RunSettings) -> None:
    from malmoi.train.models import MODELS

    registry_entry(MODELS, "model.architecture", settings.model.architecture).check_hf(Path(init_from), settings.model)


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Delete the folders on the way to `folder` that a start which is refused made, and left empty."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for each in made:
                each.rmdir()
        raise


def make_run_dir(settings: RunSettings | FinetuneSettings, fixed: tuple[str, ...]) -> Path:
    """Return the run folder, made unless it is there; what it holds is the same run.

    Args:
        fixed: beginnings of the names of settings that a run keeps to its end.

    Raises:
        UserError: it cannot be made or written to, a file is in the way, or it holds another run.
    """
    folder = Path(settings.run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another --run") from error
    for name in (CHECKPOINTS_FOLDER, TOKENIZER_FOLDER, SHARDS_FOLDER, MODEL_FOLDER):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise UserError(f"{folder / name}: is a file, where the run has a folder; move it, or choose another --run")
    for name in (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, SAMPLES_FILE):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name}: is a folder, where the run has a file; move it, or choose another --run")
    for log_file in (folder / METRICS_FILE, folder / SAMPLES_FILE):
        if log_file.is_symlink() and not log_file.exists():
            target = log_file.readlink()
            raise UserError(f"{log_file}: is a link to {target}, which is missing; restore that, or delete the link")
    for place in (folder, folder / CHECKPOINTS_FOLDER):
        if place.exists() and not os.access(place, os.W_OK):
            raise UserError(f"{place}: cannot be written to; change its permissions, or choose another --run")
    try:
        _recorded_settings(folder)
    except DamagedFileError as error:
        if is_main_rank():
            log.warning("%s", error)
    check_unchanged(folder, settings, fixed)
    return folder


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the run folder, on rank 0, against a second start of the same run.

    Raises:
        UserError: another process trains here, or the lock cannot be made.
        RunFailed: the folder was deleted meanwhile.
    """
    lock = FileLock(folder / ".training.lock", blocking=False, fallback_to_soft=False)
    if is_main_rank():
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{folder}: another process trains here; wait for it, or choose another --run") from None
        except OSError as error:
            raise UserError(
                f"{lock.lock_file}: cannot be locked ({error.strerror}); delete it, or put the run folder on a file "
                "system that has locks"
            ) from error
    try:
        yield
    except OSError as error:
        if not folder.is_dir():
            raise RunFailed(f"{folder}: was deleted while it trained; train again, in another --run perhaps") from error
        raise
    finally:
        lock.release()


def settings_as_json(settings: RunSettings | FinetuneSettings) -> dict[str, Any]:
    """Return settings as `result.json` holds them, to be compared with those of another run: lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def record_settings(folder: Path, settings: RunSettings | FinetuneSettings, parameters: int | None = None) -> None:
    """Write the run's settings and its environment into its folder, each atomically: another rank, which may still be
    checking its settings, reads the old file or the new one.

    Args:
        parameters: of the model, where they are known.
    """
    write_atomic(folder / CONFIG_FILE, settings_as_yaml(settings).encode())
    write_atomic(
        folder / ENVIRONMENT_FILE, (json.dumps({**environment(), "parameters": parameters}, indent=2) + "\n").encode()
    )


def setting_changes(folder: Path, settings: RunSettings | FinetuneSettings) -> tuple[SettingChange, ...]:
    """Return what differs from the settings that `folder` records, but the folder itself; nothing where it records
    none."""
    try:
        before = _by_name(_recorded_settings(folder))
    except DamagedFileError:
        return ()  # said by `make_run_dir`
    now = _by_name(yaml.safe_load(settings_as_yaml(settings)))
    return tuple(
        SettingChange(name, f"{name} was {before[name]} and is now {value}")
        for name, value in now.items()
        if name != "run" and before.get(name, value) != value
    )


def _recorded_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in the folder's `config.yaml`; empty where there is none.

    Raises:
        DamagedFileError: it is not the settings that were written.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        recorded = yaml.safe_load(file.read_bytes())
        if not isinstance(recorded, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DamagedFileError(
            f"{file}: damaged ({one_line(error)}); what this run was started with is not known, so a setting that "
            "changed since goes unnoticed; it is written anew"
        ) from error
    return recorded


def check_unchanged(folder: Path, settings: RunSettings | FinetuneSettings, fixed: tuple[str, ...]) -> None:
    """Check that `folder` holds no run whose tokenizer, model or optimizer is another one.

    Before the first checkpoint nothing depends on them: settings that were refused may be corrected.

    Raises:
        UserError: it does.
    """
    changed = [change.text for change in setting_changes(folder, settings) if change.name.startswith(fixed)]
    # The checkpoints' storage may be out of reach here, as on a login node.
    if changed and _has_checkpoint(folder, settings):
        raise UserError(f"{folder}: holds another run: {'; '.join(changed)}; choose another --run or delete this one")


def _has_checkpoint(folder: Path, settings: RunSettings | FinetuneSettings) -> bool:
    """Return whether the run has weights, which depend on its tokenizer: in a checkpoint, or exported."""
    stored = open_storage(checkpoint_url(folder, settings.checkpoint)).names()
    return any(checkpoint_step(name) is not None for name in stored) or (folder / MODEL_FOLDER).exists()


def _by_name(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted names."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        named |= _by_name(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return named


def environment() -> dict[str, str | int | None]:
    """Return versions and machine, for whoever repeats the run."""
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "ranks": launched_ranks().count,
        **{package: version(package) for package in PACKAGES},
    }


def is_finetuning(config: Path) -> bool:
    """Return whether a run's settings file is that of a fine-tuning run.

    Raises:
        UserError: it cannot be read.
    """
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{config}: not a settings file of ours ({one_line(error)}); restore the file") from error
    return isinstance(settings, dict) and "task" in settings


def finished_result(folder: Path) -> RunResult | None:
    """Return the result of a run that is complete, or None.

    Raises:
        DamagedFileError: it is not as it was written.
    """
    file, remedy = folder / RESULT_FILE, "train again, which evaluates and exports anew"
    if not file.is_file():
        return None
    record = read_checked_json(file, remedy)
    try:
        return RunResult(
            **{
                **record,
                "samples": tuple(record["samples"]),
                "files": tuple(FileRecord(**each) for each in record.get("files", ())),
            }
        )
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"{file}: damaged ({one_line(error)}); {remedy}") from error


def recorded_files(folder: Path) -> tuple[FileRecord, ...]:
    """Return the small files of a run folder as they are now: settings, environment, logs, predictions and tokenizer.
    Shards, checkpoints and the model have records of their own."""
    logs = (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, SAMPLES_FILE)
    names = (*logs, *sorted(file.name for file in folder.glob(f"{PREDICTIONS}*.jsonl")))
    tokenizer = sorted((folder / TOKENIZER_FOLDER).glob("*")) if (folder / TOKENIZER_FOLDER).is_dir() else []
    files = [file for file in (*(folder / name for name in names), *tokenizer) if file.is_file()]
    return tuple(file_record(file, str(file.relative_to(folder))) for file in files)


def write_result(folder: Path, result: RunResult) -> None:
    """Write `result.json`, which marks the run complete, with a record of the small files beside it."""
    write_atomic(folder / RESULT_FILE, checked_json(asdict(replace(result, files=recorded_files(folder)))))
