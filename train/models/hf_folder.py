"""A model folder in Hugging Face's form that training begins from: whether it fits, by its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from malmoi.configs.model import ModelSettings
from malmoi.errors import UserError
from malmoi.inference.model_files import CONFIG_FILE, WEIGHTS_FILE, has_weights


def hf_config(folder: Path) -> dict[str, Any]:
    """Return `folder/config.json`.

    Raises:
        UserError: there is none, or it is not a JSON object.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --init_from takes a model folder, downloaded or from RUN/model")
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{file}: missing, so {folder} is not a model folder; --init_from takes one, such as RUN/model")
    try:
        return {**json.loads(file.read_bytes())}
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a JSON object ({error}); download or export the model again") from error


def require_model_type(folder: Path, config: Mapping[str, Any], model_type: str, name: str) -> None:
    """Check that `folder`, whose configuration this is, holds a model of that type, as safetensors.

    Args:
        name: of the type, in words.

    Raises:
        UserError: it does not.
    """
    kind = config.get("model_type")
    if kind != model_type:
        raise UserError(
            f"{folder}: holds a model of type {kind}, and model.architecture is {model_type}; choose a {name}, or set "
            "model.architecture to the type of this one"
        )
    if not has_weights(folder):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"{folder}: its weights are a pickle, which can run code when it is loaded; where you trust it, write "
                "safetensors once: `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)` in Python"
            )
        raise UserError(f"{folder}: no weights ({WEIGHTS_FILE}); download or export the model again")


def require_same_shape(folder: Path, theirs: ModelSettings, ours: ModelSettings, names: Sequence[str]) -> None:
    """Check that the model in `folder`, of shape `theirs`, has the shape of the settings.

    Raises:
        UserError: one of the settings `names` differs.
    """
    differing = [name for name in names if getattr(theirs, name) != getattr(ours, name)]
    if differing:
        has = ", ".join(f"{name} {getattr(theirs, name)}" for name in differing)
        flags = " ".join(f"--model.{name} {getattr(theirs, name)}".lower() for name in names)
        raise UserError(f"{folder}: has {has}, unlike the settings; a model keeps its shape: set {flags}")


def require_values(folder: Path, config: Mapping[str, Any], wanted: Mapping[str, Any], name: str) -> None:
    """Check that a configuration has, or leaves at their defaults, values without which it is another model.

    Args:
        name: of the model, in words.

    Raises:
        UserError: it has others.
    """
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise UserError(f"{folder}: {key} is {config[key]}, which {name} does not have; choose another model")
