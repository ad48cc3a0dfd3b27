"""Experiment trackers: Accelerate's by name, or a class of the user's own, which get everything that is logged."""

import importlib
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    LoggerType,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    get_available_trackers,
)

from malmoi.configs.outputs import LogSettings
from malmoi.errors import UserError, first_line, nearest_name_hint

PROJECT = "malmoi"
LOGGING_FOLDER = "tensorboard"
RUN_NAME_ARGUMENTS = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
    "dvclive": "exp_name",
}
"""What a tracker's initialization calls the name of a run, where its first argument is the project; for the others that
is the run."""
SAMPLE, EVENT = "sample", "event"
"""What trackers call the sample of an evaluation; and what happened, with its kind after a slash: `event/resume`."""
WITHOUT_TEXTS = frozenset({"aim", "clearml", "dvclive", "swanlab"})
"""Accelerate's trackers that take numbers alone."""
ALERT_LEVELS = {"rollback": "WARN", "stop": "WARN", "failure": "ERROR"}
"""Trackio's level of an event that is more than information."""
CUT = " ..."
"""Ends a value that is longer than MLflow takes."""


def require_trackers(names: Sequence[str], arguments: Collection[str] = ()) -> None:
    """Check that every tracker is known and installed.

    Args:
        arguments: names of the trackers that get arguments, used or not.

    Raises:
        UserError: Accelerate knows none of that name, its package is missing, or a class of one's own cannot be
            imported.
    """
    known = [str(tracker.value) for tracker in LoggerType if tracker.value != "all"]
    for name in names:
        if ":" in name:
            _tracker_class(name)
        elif name not in known:
            raise UserError(
                f"log.trackers {name}: no such tracker{nearest_name_hint(name, known)} Write package.module:Class for "
                "one of your own"
            )
        elif name not in [str(tracker.value) for tracker in get_available_trackers()]:
            raise UserError(f"log.trackers {name}: its package is not installed; `pip install {name}`")
    for name in arguments:
        if name not in known and name not in names:
            raise UserError(
                f"log.tracker_args {name}: no such tracker{nearest_name_hint(name, [*known, *names])} "
                "Name one of log.trackers"
            )


def start_trackers(
    accelerator: Accelerator, settings: LogSettings, run: Path, config: Mapping[str, Any], resumes: bool = False
) -> None:
    """Start the trackers on rank 0, and give them the run's name and configuration.

    Args:
        config: the run's settings by dotted name.
        resumes: whether the run has a checkpoint: trackio then continues its run of that name.

    Raises:
        UserError: a tracker does not take one of its `log.tracker_args`, or cannot start, for want of a login perhaps.
    """
    if not accelerator.is_main_process:
        return
    try:
        accelerator.log_with = [
            _new_tracker(name, run, resumes, settings.tracker_args.get(name, {})) for name in settings.trackers
        ]
        accelerator.init_trackers(PROJECT, config=dict(config))
    except (OSError, UserError):
        raise
    except Exception as error:  # a tracker's own errors are of any type
        if isinstance(error, TypeError) and "argument" in str(error):
            raise UserError(f"log.tracker_args: {error}; see what the tracker's initialization takes") from error
        names = ", ".join(settings.trackers)
        raise UserError(
            f"log.trackers {names}: cannot start ({type(error).__name__}: {first_line(error)}); set the tracker up, or "
            "leave it out"
        ) from error
    if "comet_ml" in settings.trackers:
        accelerator.get_tracker("comet_ml", unwrap=True).set_name(run.name)


def log_text(accelerator: Accelerator, name: str, text: str, step: int) -> None:
    """Give a text, `SAMPLE` or an event, to the trackers that take texts; on other ranks than 0 there are none."""
    for tracker in accelerator.trackers:
        if tracker.name not in WITHOUT_TEXTS:
            tracker.log({name: text}, step=step)


def log_event(accelerator: Accelerator, kind: str, text: str, step: int) -> None:
    """Give an event of the run to the trackers, such as a resume."""
    log_text(accelerator, f"{EVENT}/{kind}", text, step)


def _new_tracker(name: str, run: Path, resumes: bool, arguments: Mapping[str, Any]) -> GeneralTracker:
    kind = OWN_CLASSES[name] if name in OWN_CLASSES else _tracker_class(name)
    named = {RUN_NAME_ARGUMENTS[name]: run.name} if name in RUN_NAME_ARGUMENTS else {}
    if name == "trackio" and resumes:
        named["resume"] = "allow"
    first = PROJECT if named or name == "comet_ml" else run.name
    folder = [str(run / LOGGING_FOLDER)] if kind.requires_logging_directory else []
    return kind(first, *folder, **{**named, **arguments})


class TensorBoardWithTexts(TensorBoardTracker):  # type: ignore[misc]  # accelerate is untyped
    """Accelerate's tracker, whose texts TensorBoard would read as Markdown; here they are shown as they are."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        # An indented block is code, whatever is in it.
        shown = {
            name: "\n".join(f"    {line}" for line in value.splitlines()) if isinstance(value, str) else value
            for name, value in values.items()
        }
        super().log(shown, step=step, **kwargs)


class TrackioWithTexts(TrackioTracker):  # type: ignore[misc]  # accelerate is untyped
    """Accelerate's tracker, which would draw texts as metrics; here events are alerts, and samples are reports."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        import trackio

        for name, value in values.items():
            if isinstance(value, str) and name.startswith(f"{EVENT}/"):
                kind = name.removeprefix(f"{EVENT}/")
                level = trackio.AlertLevel[ALERT_LEVELS.get(kind, "INFO")]
                # It prints each, and the run has shown it already.
                with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
                    self.run.alert(kind, value, level=level, step=step)
        kept = {
            name: trackio.Markdown(value) if isinstance(value, str) else value
            for name, value in values.items()
            if not (isinstance(value, str) and name.startswith(f"{EVENT}/"))
        }
        if kept:
            super().log(kept, step=step, **kwargs)


class MLflowWithTexts(MLflowTracker):  # type: ignore[misc]  # accelerate is untyped
    """Accelerate's tracker, which leaves out texts, and a setting that is longer than MLflow takes; here it is cut, and
    a text is an artifact such as `sample/step-000100.txt`."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        most = MAX_PARAM_VAL_LENGTH - len(CUT)
        texts = {name: str(value) for name, value in values.items()}
        super().store_init_configuration(
            {name: text if len(text) <= most else text[:most] + CUT for name, text in texts.items()}
        )

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        import mlflow

        for name, value in values.items():
            if isinstance(value, str):
                mlflow.log_text(value, f"{name}/step-{step or 0:06d}.txt")
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        if numbers:
            super().log(numbers, step=step)


OWN_CLASSES: Mapping[str, type[GeneralTracker]] = {
    "tensorboard": TensorBoardWithTexts,
    "trackio": TrackioWithTexts,
    "mlflow": MLflowWithTexts,
}
"""Trackers in the place of Accelerate's of that name."""


def _tracker_class(name: str) -> type[GeneralTracker]:
    """Return Accelerate's class of that name, or the one that `package.module:Class` names.

    Raises:
        UserError: it cannot be imported, or is no tracker.
    """
    if ":" not in name:
        kind: type[GeneralTracker] = LOGGER_TYPE_TO_CLASS[name]
        return kind
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"log.trackers {name}: cannot be imported ({error}); write package.module:Class, and name a module of the "
            "current folder in `plugins` too"
        ) from error
    if not (isinstance(found, type) and issubclass(found, GeneralTracker)):
        raise UserError(f"log.trackers {name}: is not a subclass of accelerate.tracking.GeneralTracker; make it one")
    return found


def flat_config(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return settings by dotted name, in the types that every tracker takes: lists and null as text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
