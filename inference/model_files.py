"""The files of a model folder, by the names that `save_pretrained` gives them. Needs no torch."""

from pathlib import Path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
"""Names the files of weights that are too large for one."""


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds weights as safetensors, in one file or in several."""
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, WEIGHTS_INDEX_FILE))
