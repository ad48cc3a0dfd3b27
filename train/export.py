"""The model folder that a run exports, complete or absent."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from malmoi.atomic_io import fsync_path
from malmoi.checked_json import checked_json
from malmoi.checksums import file_record
from malmoi.errors import disk_error
from malmoi.train.run_dir import MODEL_FOLDER

MODEL_RECORD = "files.json"
"""Size and checksum of every other file of a model folder, for `malmoi verify`."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "spiece.model"),
)


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy the files that `AutoTokenizer` reads into a model folder."""
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)


def place_model_folder(run: Path, write: Callable[[Path], None]) -> Path:
    """Have `write` fill the run's model folder, complete or absent, record its files, and return it."""
    final = run / MODEL_FOLDER
    temporary = run / f".{MODEL_FOLDER}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
    except SafetensorError as error:
        raise disk_error(error, temporary) or error from None
    records = [asdict(file_record(file)) for file in sorted(temporary.iterdir())]
    (temporary / MODEL_RECORD).write_bytes(checked_json({"files": records}))
    # result.json, which says that the run is done, must not reach the disk before the model.
    for file in (*temporary.iterdir(), temporary):
        fsync_path(file)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    fsync_path(run)
    return final
