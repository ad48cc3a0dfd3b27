"""Whether a shard folder, a checkpoint or a model is whole."""

import json
from pathlib import Path

from configs.errors import BadInput
from data_prep.inspection import tokenizer_near
from data_prep.manifest import FileRecord, shard_folder
from data_prep.verify import file_faults, shard_faults

CHECKPOINT_STATE = "state.json"
MODEL_CONFIG = "config.json"
MODEL_RECORD = "files.json"


def folder_faults(folder: Path, tokenizer: Path | None = None) -> tuple[str, list[str]]:
    """What `folder` is, and what is wrong with it, a line each.

    Args:
        tokenizer: folder of the tokenizer that shards must be made with; none: the one near them, if any.

    Raises:
        BadInput: it is none of the kinds of folder that Malmoi writes.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name a shard folder, a checkpoint or a model")
    if (folder / CHECKPOINT_STATE).is_file():
        from train.checkpoint import checkpoint_faults

        return "a checkpoint", checkpoint_faults(folder)
    if (folder / MODEL_CONFIG).is_file():
        return "a model", model_faults(folder)
    try:
        shards = shard_folder(folder)
    except BadInput as error:
        raise BadInput(
            f"{folder}: no shard folder (manifest.json), checkpoint ({CHECKPOINT_STATE}) or model ({MODEL_CONFIG}); "
            "name one of these"
        ) from error
    return "a shard folder", shard_faults(folder, tokenizer or tokenizer_near(shards))


def model_faults(folder: Path) -> list[str]:
    """What is wrong with a model folder that Malmoi exported."""
    file = folder / MODEL_RECORD
    try:
        records = tuple(FileRecord(**record) for record in json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        return [f"{file}: missing or broken ({error}), so nothing to check the model against; export it again"]
    return file_faults(folder, records)
