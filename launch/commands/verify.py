"""`malmoi verify`: checks a shard folder, a checkpoint or a model for damage."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from malmoi.checksums import FileRecord, file_errors
from malmoi.configs.commands import VerifyOptions
from malmoi.configs.parser import parse_settings
from malmoi.data_prep.shards.inspect import tokenizer_near
from malmoi.data_prep.shards.manifest import shard_folder
from malmoi.data_prep.shards.verify import shard_errors
from malmoi.errors import EXIT_DONE, UserError, require_argument

CHECKPOINT_STATE = "state.json"
MODEL_CONFIG = "config.json"
MODEL_RECORD = "files.json"


def verify(argv: Sequence[str]) -> int:
    """Check a folder; every error found is a line on stderr."""
    about = "Check a shard folder, a checkpoint or a model for damage."
    options = parse_settings(VerifyOptions, argv, "malmoi verify", about, positional="path")
    require_argument("verify", "PATH", bool(options.path))
    kind, errors = folder_errors(Path(options.path), Path(options.tokenizer) if options.tokenizer else None)
    if not errors:
        print(f"{options.path}: valid {kind}")
        return EXIT_DONE
    for error in errors[:-1]:
        print(f"malmoi verify: {error}", file=sys.stderr)
    raise UserError(errors[-1])


def folder_errors(folder: Path, tokenizer: Path | None = None) -> tuple[str, list[str]]:
    """Return what kind of folder `folder` is, and what is wrong with it, a line each.

    Args:
        tokenizer: folder of the tokenizer that shards must be made with; none: the one near them, if any.

    Raises:
        UserError: it is none of the kinds of folder that Malmoi writes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a shard folder, a checkpoint or a model")
    if (folder / CHECKPOINT_STATE).is_file():
        from malmoi.train.checkpoint.format import checkpoint_errors

        return "checkpoint", checkpoint_errors(folder)
    if (folder / MODEL_CONFIG).is_file():
        return "model", _model_errors(folder)
    try:
        shards = shard_folder(folder)
    except UserError as error:
        raise UserError(
            f"{folder}: no shard folder (manifest.json), checkpoint ({CHECKPOINT_STATE}) or model ({MODEL_CONFIG}); "
            "name one of these"
        ) from error
    return "shard folder", shard_errors(folder, tokenizer or tokenizer_near(shards))


def _model_errors(folder: Path) -> list[str]:
    """Return what is wrong with a model folder that Malmoi exported."""
    file = folder / MODEL_RECORD
    try:
        records = tuple(FileRecord(**record) for record in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        return [f"{file}: missing or broken ({error}), so the model cannot be checked; export it again"]
    return file_errors(folder, records)
