"""The model folder that a run leaves, whole or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from configs.errors import disk_error
from data_prep.files import fsync_path
from data_prep.manifest import file_record
from train.model import MODEL_RECORD
from train.run_folder import MODEL_FOLDER, PreparedRun

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "spiece.model"),
)


def export_run(prepared: PreparedRun, export: Callable[[Path], None]) -> Path:
    """Write the run's model folder anew, the model by `export` and its tokenizer, and return it."""

    def write(folder: Path) -> None:
        export(folder)
        for name in TOKENIZER_FILES:
            if (prepared.tokenizer / name).is_file():
                shutil.copy(prepared.tokenizer / name, folder / name)

    return place_model_folder(prepared.folder, write)


def place_model_folder(run: Path, write: Callable[[Path], None]) -> Path:
    """Have `write` fill the run's model folder, whole or not at all, record its files, and return it."""
    final = run / MODEL_FOLDER
    temporary = run / f".{MODEL_FOLDER}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
    except SafetensorError as error:
        raise disk_error(error, temporary) or error from None
    records = [asdict(file_record(file)) for file in sorted(temporary.iterdir())]
    (temporary / MODEL_RECORD).write_text(json.dumps(records, indent=2) + "\n")
    # result.json, which says that the run is done, must not reach the disk before what it speaks of.
    for file in (*temporary.iterdir(), temporary):
        fsync_path(file)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    fsync_path(run)
    return final
