"""The tensors of a model folder's safetensors files, read one at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from malmoi.errors import UserError, first_line
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


def stored_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of the model in `folder`.

    Raises:
        UserError: it cannot be read, or `transformers` refuses it.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError and its own alike
        raise UserError(
            f"{folder}: cannot be loaded ({first_line(error)}); download or export the model again"
        ) from error


@dataclass(frozen=True)
class Table:
    """A parameter whose rows a run may have more or fewer of than a stored model."""

    stored_rows: int
    """By the stored model's configuration."""
    most_rows: int | None = None
    """Rows that are read at most; None: as many as the parameter has."""


def load_parameters(
    model: nn.Module, folder: Path, names: Callable[[str], Sequence[str]], tables: Mapping[str, Table]
) -> None:
    """Overwrite the parameters of `model` with the tensors in `folder`, read one at a time; rows that these lack stay.

    Args:
        names: from a parameter's name to those that it may be stored under, the first that is there counts.
        tables: by the parameter's name.

    Raises:
        UserError: a tensor is missing, has another shape, or cannot be read.
    """
    try:
        stored = stored_tensors(folder)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: cannot be loaded ({first_line(error)}); download or export the model again"
        ) from error
    parameters = dict(model.named_parameters())
    found = {name: next((stored[each] for each in names(name) if each in stored), None) for name in parameters}
    missing = sorted(name for name, tensor in found.items() if tensor is None)
    if missing:
        raise UserError(f"{folder}: lacks the weights {missing[0]} and {len(missing) - 1} more; export the model again")
    for name, tensor in found.items():
        assert tensor is not None
        parameter, table = parameters[name], tables.get(name)
        shape = (table.stored_rows if table else len(parameter), *parameter.shape[1:])
        if tensor.shape != shape:
            raise UserError(
                f"{folder}: cannot be loaded ({name} has the shape {list(tensor.shape)}, and by its configuration "
                f"{list(shape)}); download or export the model again"
            )
        most = table.most_rows if table and table.most_rows is not None else len(parameter)
        with torch.no_grad():
            read_rows(parameter, str(tensor.file), tensor.name, min(len(parameter), tensor.shape[0], most))


@torch.library.custom_op("malmoi::read_rows", mutates_args=("into",))
def read_rows(into: Tensor, file: str, name: str, rows: int) -> None:
    """Overwrite the first rows of `into` with those of a tensor in a safetensors file; an operation of torch's, so that
    it can be deferred."""
    with safe_open(file, "pt") as opened:
        into[:rows] = opened.get_slice(name)[:rows]
