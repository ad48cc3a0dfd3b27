"""A model folder in GPT-2's format that training begins from: whether it fits, by its files."""

from pathlib import Path
from typing import Any

from malmoi.configs.model import ModelSettings
from malmoi.errors import UserError
from malmoi.train.models.hf_folder import hf_config, require_model_type, require_same_shape, require_values
from malmoi.train.models.spec import HfSize

SHAPE = ("n_layer", "n_head", "n_embd")
GPT2_DEFAULTS = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
"""What a configuration that omits a value means."""


def check_gpt2_folder(folder: Path, model: ModelSettings) -> None:
    """Check that `folder` holds a GPT-2 of the shape of `model`, as safetensors.

    Raises:
        UserError: it does not.
    """
    config = _config(folder)
    require_model_type(folder, config, "gpt2", "GPT-2")
    require_same_shape(folder, gpt2_shape(folder), model, SHAPE)
    if config.get("n_inner") not in (None, 4 * model.n_embd):
        raise UserError(f"{folder}: n_inner {config['n_inner']} is not 4 x n_embd; choose another model")
    require_values(folder, config, {"tie_word_embeddings": True, "add_cross_attention": False}, "GPT-2")


def gpt2_shape(folder: Path) -> ModelSettings:
    """Return the shape of the model in `folder`.

    Raises:
        UserError: the folder holds no model.
    """
    config = _config(folder)
    return ModelSettings(
        n_layer=config["n_layer"], n_head=config["n_head"], n_embd=config["n_embd"], block_size=config["n_positions"]
    )


def gpt2_size(folder: Path) -> HfSize:
    """Return the size of the model in `folder`, each of whose positions has a vector.

    Raises:
        UserError: the folder holds no model.
    """
    config = _config(folder)
    return HfSize(config["vocab_size"], config["n_positions"], has_position_weights=True)


def _config(folder: Path) -> dict[str, Any]:
    return {**GPT2_DEFAULTS, **hf_config(folder)}
