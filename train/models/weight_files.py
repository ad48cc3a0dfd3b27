"""The tensors of a model folder's safetensors files, read one at a time."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from malmoi.inference.model_files import WEIGHTS_FILE, WEIGHTS_INDEX_FILE


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors in `folder` by name, from one file or from the several that an index lists.

    Raises:
        OSError, SafetensorError, ValueError, KeyError: a file is missing or broken.
    """
    index = folder / WEIGHTS_INDEX_FILE
    files = [folder / WEIGHTS_FILE]
    if not files[0].is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                found[name] = StoredTensor(file, name, tuple(opened.get_slice(name).get_shape()))
    return found


@torch.library.custom_op("malmoi::read_rows", mutates_args=("into",))
def read_rows(into: Tensor, file: str, name: str, rows: int) -> None:
    """Overwrite the first rows of `into` with those of a tensor in a safetensors file; an operation of torch's, so that
    it can be deferred."""
    with safe_open(file, "pt") as opened:
        into[:rows] = opened.get_slice(name)[:rows]
