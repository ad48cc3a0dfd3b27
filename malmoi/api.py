"""The steps of a run as functions of its settings, for `import malmoi`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from malmoi.configs.validate import check_settings
from malmoi.errors import EXIT_STOPPED, RunFailed, RunStopped
from malmoi.plugins import load_plugins

if TYPE_CHECKING:
    from malmoi.configs.finetune import FinetuneSettings
    from malmoi.configs.run import RunSettings
    from malmoi.data_prep.shards.token_stream import TokenStream
    from malmoi.train.finetune_result import FinetuneResult


@dataclass(frozen=True)
class TrainResult:
    """What a finished run produced."""

    run: Path
    """The run folder."""
    model: Path
    """The model folder in it, in Hugging Face form with its tokenizer."""
    val_loss: float | None
    """Validation loss of the model, in nats a token; None: there is no validation split."""
    bits_per_byte: float | None
    """The same in bits a byte of UTF-8 text, which models with different tokenizers share."""
    samples: tuple[str, ...]
    """Texts that the model continued from `generate.prompt`."""


def train_tokenizer(config: RunSettings) -> Path:
    """Train the run's tokenizer on its corpus, unless it is there or `tokenizer.path` or `init_from` names one.

    Returns:
        The folder of the tokenizer.

    Raises:
        UserError: the settings or the corpus cannot be used.
    """
    check_settings(config)
    load_plugins(config.plugins)
    from malmoi.train.run_dir import FIXED, make_run_dir, prepare_tokenizer

    return prepare_tokenizer(config, make_run_dir(config, FIXED))


def prepare(config: RunSettings) -> tuple[Path, ...]:
    """Build the run's tokenizer and token shards, unless they are there.

    Returns:
        The shard folder of each source of the corpus, in order; one where `corpus.sources` is empty.

    Raises:
        UserError: the settings, the corpus or the run folder cannot be used.
    """
    check_settings(config)
    load_plugins(config.plugins)
    from malmoi.train.run_dir import prepare_run

    return tuple(source.folder for source in prepare_run(config).sources)


def open_dataset(path: str | Path, split: Literal["train", "val"] = "train") -> TokenStream:
    """Open the tokens of a split of a shard folder, memory-mapped.

    Args:
        path: what `prepare` returned, or a folder that holds one shard folder.

    Raises:
        UserError: there is no shard folder, or it is not complete.
    """
    from malmoi.data_prep.shards.token_stream import open_split

    return open_split(Path(path), split)


def train(config: RunSettings) -> TrainResult:
    """Train the run from wherever its folder has got to: build what is missing, resume from the newest checkpoint.

    Under `accelerate launch` every rank calls it, and every rank gets the result.

    Raises:
        UserError: the settings, the corpus or the run folder cannot be used.
        RunFailed: training diverged again after every rollback.
        RunStopped: a signal stopped it after it saved a checkpoint; the same call resumes.
    """
    check_settings(config)
    from malmoi.ranks import is_main_rank
    from malmoi.train.pretrain import pretrain
    from malmoi.train.run_dir import MODEL_FOLDER, finished_result, settings_as_json

    with _signal_handlers_restored():
        if pretrain(config) == EXIT_STOPPED:
            raise _stopped(config.run)
    folder, settings = Path(config.run), settings_as_json(config)
    result = finished_result(folder)
    while result is None or result.settings != settings:
        if is_main_rank():
            raise RunFailed(f"{config.run}: training ended without a result; train again")
        # The first rank draws samples when the others are done; the launcher ends these if it fails.
        time.sleep(0.2)
        result = finished_result(folder)
    return TrainResult(folder, folder / MODEL_FOLDER, result.val_loss, result.bits_per_byte, result.samples)


def finetune(config: FinetuneSettings) -> FinetuneResult:
    """Fine-tune a model on labeled examples, from wherever the run folder has got to.

    The model is in the folder `model` of the run folder. Every rank gets the result.

    Raises:
        UserError: the settings, the model, the examples or the run folder cannot be used.
        RunFailed: training diverged again after every rollback.
        RunStopped: a signal stopped it after it saved a checkpoint; the same call resumes.
    """
    check_settings(config)
    from malmoi.ranks import is_main_rank
    from malmoi.train.finetune import finetune as run_finetuning
    from malmoi.train.finetune_result import finished_finetuning
    from malmoi.train.run_dir import settings_as_json

    with _signal_handlers_restored():
        if run_finetuning(config) == EXIT_STOPPED:
            raise _stopped(config.run)
    folder, settings = Path(config.run), settings_as_json(config)
    result = finished_finetuning(folder)
    while result is None or result.settings != settings:
        if is_main_rank():
            raise RunFailed(f"{config.run}: training ended without a result; train again")
        # On another node it may not be seen yet.
        time.sleep(0.2)
        result = finished_finetuning(folder)
    return result


def _stopped(run: str) -> RunStopped:
    return RunStopped(f"{run}: stopped by a signal, with a checkpoint saved; train again to resume")


@contextmanager
def _signal_handlers_restored() -> Iterator[None]:
    """Undo what a stopped run leaves for a process that ends after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: set by another language, which alone could set it again.
            if handler is not None:
                signal.signal(number, handler)
