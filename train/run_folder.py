"""What lies in a run folder besides checkpoints, and what must be there before training begins."""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from configs.command_line import settings_as_yaml
from configs.errors import BadInput, one_line
from configs.finetune_settings import FinetuneSettings
from configs.schema import RunSettings
from data_prep.build import prepare_tokenizer
from data_prep.files import write_whole
from data_prep.mixture import SourceShards, prepare_sources
from train.pretrained import check_fit, check_folder

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
RESULT_FILE = "result.json"
TOKENIZER_FOLDER, SHARDS_FOLDER, MODEL_FOLDER = "tokenizer", "shards", "model"
CHECKPOINTS_FOLDER = "checkpoints"
FIXED = ("init_", "tokenizer.", "model.", "data.document_mask", "data.length_warmup", "train.seed", "train.optimizer")
"""Beginnings of the names of settings that a run keeps to its end."""
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
    held_out_loss: float | None
    bits_per_byte: float | None
    prompt: str
    samples: tuple[str, ...]


def is_main_rank() -> bool:
    """Whether this process is rank 0, as its launcher tells; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def prepare_run(settings: RunSettings) -> PreparedRun:
    """Build tokenizer and shards unless they are there, and record the settings of a new run. Any number of ranks may
    ask, before they know each other.

    Raises:
        BadInput: the corpus, the tokenizer or the run folder is not usable.
    """
    folder = make_run_folder(settings, FIXED)
    show = is_main_rank()
    show_progress = show and sys.stderr.isatty()
    chosen = settings.tokenizer
    if settings.init_from is not None:
        check_folder(Path(settings.init_from), settings.model)
        chosen = replace(chosen, path=chosen.path or settings.init_from)
    tokenizer = prepare_tokenizer(settings.corpus, chosen, folder / TOKENIZER_FOLDER, show_progress)
    if settings.init_from is not None:
        check_fit(settings, tokenizer)
    cache = Path(settings.data.cache) if settings.data.cache else folder / SHARDS_FOLDER
    sources = prepare_sources(settings.corpus, settings.data, tokenizer, cache)
    if show and not (folder / CONFIG_FILE).is_file():
        # A folder with settings in it may be training: they are replaced when these train here, and not before.
        record_settings(folder, settings)
    return PreparedRun(folder, tokenizer, sources)


def make_run_folder(settings: RunSettings | FinetuneSettings, fixed: tuple[str, ...]) -> Path:
    """The run folder, made unless it is there; what it holds is the same run.

    Args:
        fixed: beginnings of the names of settings that a run keeps to its end.

    Raises:
        BadInput: it cannot be made, or it holds another run.
    """
    folder = Path(settings.run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made ({error.strerror}); choose another --run") from error
    _check_unchanged(folder, settings, fixed)
    return folder


def settings_as_json(settings: RunSettings | FinetuneSettings) -> dict[str, Any]:
    """Settings as `result.json` holds them, to be compared with those of another run: lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def record_settings(folder: Path, settings: RunSettings | FinetuneSettings) -> None:
    """Write the run's settings and its environment into its folder, each in one step: another rank, which may still
    be checking its settings, reads the old file or the new one."""
    write_whole(folder / CONFIG_FILE, settings_as_yaml(settings).encode())
    write_whole(folder / ENVIRONMENT_FILE, (json.dumps(environment(), indent=2) + "\n").encode())


def setting_changes(folder: Path, settings: RunSettings | FinetuneSettings) -> tuple[SettingChange, ...]:
    """What differs from the settings that `folder` records, but the way to it; nothing where it records none."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return ()
    before, now = (_by_name(yaml.safe_load(text)) for text in (file.read_text(), settings_as_yaml(settings)))
    return tuple(
        SettingChange(name, f"{name} was {before[name]} and is now {value}")
        for name, value in now.items()
        if name != "run" and before.get(name, value) != value
    )


def _check_unchanged(folder: Path, settings: RunSettings | FinetuneSettings, fixed: tuple[str, ...]) -> None:
    """Refuse to go on with a run whose tokenizer, model or optimiser would be another one.

    Before the first checkpoint only the tokenizer is there: settings that were refused may be corrected.
    """
    if not any((folder / CHECKPOINTS_FOLDER).glob("step-*")) and not (folder / MODEL_FOLDER).exists():
        fixed = tuple(name for name in fixed if name == "tokenizer.")
    changed = [change.text for change in setting_changes(folder, settings) if change.name.startswith(fixed)]
    if changed:
        raise BadInput(f"{folder}: holds another run: {'; '.join(changed)}; choose another --run or delete this one")


def _by_name(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        named |= _by_name(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return named


def environment() -> dict[str, str | int | None]:
    """Versions and machine, for whoever repeats the run."""
    versions = {package: version(package) for package in PACKAGES}
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        **versions,
    }


def is_finetuning(config: Path) -> bool:
    """Whether a file of a run's settings is that of a fine-tuning.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{config}: no settings of ours ({one_line(error)}); restore the file") from error
    return isinstance(settings, dict) and "task" in settings


def finished_result(folder: Path) -> RunResult | None:
    """The result of a run that is complete, or none."""
    file = folder / RESULT_FILE
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    return RunResult(**{**record, "samples": tuple(record["samples"])})


def write_result(folder: Path, result: RunResult) -> None:
    """Write `result.json`, which says that the run is complete."""
    content = json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / RESULT_FILE, content.encode())
