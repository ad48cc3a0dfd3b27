"""A model folder in GPT-2's format that training begins from: whether it fits, by its files and without torch."""

import json
from pathlib import Path
from typing import Any

from malmoi.configs.model import ModelSettings
from malmoi.errors import UserError
from malmoi.inference.model_files import CONFIG_FILE, WEIGHTS_FILE, has_weights

SHAPE = ("n_layer", "n_head", "n_embd")
GPT2_DEFAULTS = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
"""What a configuration that omits a value means."""


def check_gpt2_folder(folder: Path, model: ModelSettings) -> None:
    """Check that `folder` holds a GPT-2 of the shape of `model`, as safetensors.

    Raises:
        UserError: it does not.
    """
    config = hf_config(folder)
    kind = config.get("model_type")
    if kind != "gpt2":
        raise UserError(f"{folder}: holds a model of type {kind}; --init_from takes a GPT-2")
    if not has_weights(folder):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"{folder}: its weights are a pickle, which can run code when it is loaded; where you trust it, write "
                "safetensors once: `GPT2LMHeadModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)` in Python"
            )
        raise UserError(f"{folder}: no weights ({WEIGHTS_FILE}); download or export the model again")
    differing = [name for name in SHAPE if config[name] != getattr(model, name)]
    if differing:
        has = ", ".join(f"{name} {config[name]}" for name in differing)
        flags = " ".join(f"--model.{name} {config[name]}" for name in SHAPE)
        raise UserError(f"{folder}: has {has}, unlike the settings; a model keeps its shape: set {flags}")
    if config.get("n_inner") not in (None, 4 * model.n_embd):
        raise UserError(f"{folder}: n_inner {config['n_inner']} is not 4 x n_embd; choose another model")
    for name, wanted in (("tie_word_embeddings", True), ("add_cross_attention", False)):
        if config.get(name, wanted) != wanted:
            raise UserError(f"{folder}: {name} is {config[name]}, which GPT-2 does not have; choose another model")


def gpt2_shape(folder: Path) -> ModelSettings:
    """Return the shape of the model in `folder`.

    Raises:
        UserError: the folder holds no model.
    """
    config = hf_config(folder)
    return ModelSettings(
        n_layer=config["n_layer"], n_head=config["n_head"], n_embd=config["n_embd"], block_size=config["n_positions"]
    )


def hf_config(folder: Path) -> dict[str, Any]:
    """Return `folder/config.json`, GPT-2's defaults filled in.

    Raises:
        UserError: there is none, or it is not a JSON object.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --init_from takes a model folder, downloaded or from RUN/model")
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{file}: missing, so {folder} is not a model folder; --init_from takes one, such as RUN/model")
    try:
        config = json.loads(file.read_bytes())
        return {**GPT2_DEFAULTS, **config}
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a JSON object ({error}); download or export the model again") from error
