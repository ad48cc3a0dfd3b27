"""The files of a model folder, `config.json` and safetensors, checked by name; without torch, which takes seconds."""

from pathlib import Path

from malmoi.errors import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
"""Lists the files of weights that are split over several."""


def check_model_files(folder: Path) -> None:
    """Check that `folder` holds a model's configuration and weights.

    Raises:
        UserError: there is no such folder, or it lacks one of them.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; train one with `malmoi train`, which exports it to RUN/model")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder}: no {CONFIG_FILE}, so no model folder; give the folder that `malmoi train` exported")
    if not has_weights(folder):
        raise UserError(f"{folder}: no weights ({WEIGHTS_FILE}); export the model again")


def has_weights(folder: Path) -> bool:
    """Return whether `folder` holds weights as safetensors, in one file or in several."""
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, WEIGHTS_INDEX_FILE))
