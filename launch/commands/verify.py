"""`malmoi verify`: checks a run folder, a shard folder, a checkpoint or a model for damage."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from malmoi.checked_json import DamagedFileError, parse_checked_json
from malmoi.checksums import FileRecord, file_errors
from malmoi.configs.commands import VerifyOptions
from malmoi.configs.parser import parse_settings
from malmoi.data_prep.pipeline.build import tokenizer_damage
from malmoi.data_prep.shards.inspect import tokenizer_near
from malmoi.data_prep.shards.manifest import NoShardFolder, shard_folder
from malmoi.data_prep.shards.verify import shard_errors
from malmoi.errors import EXIT_DONE, UserError, one_line, require_argument
from malmoi.train.finetune_result import finished_finetuning
from malmoi.train.run_dir import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    MODEL_FOLDER,
    SHARDS_FOLDER,
    TOKENIZER_FOLDER,
    finished_result,
)

CHECKPOINT_STATE = "state.json"
MODEL_CONFIG = "config.json"
MODEL_RECORD = "files.json"
EXPORT_AGAIN = "delete result.json of its run and train again, which exports the model of the last checkpoint"


def verify(argv: Sequence[str]) -> int:
    """Check a folder; every error found is a line on stderr."""
    about = "Check a run, a shard folder, a checkpoint or a model for damage."
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
        raise UserError(f"{folder}: no such folder; name a run, a shard folder, a checkpoint or a model")
    if (folder / CONFIG_FILE).is_file():
        return "run", list(run_errors(folder))
    if (folder / CHECKPOINT_STATE).is_file():
        from malmoi.train.checkpoint.format import checkpoint_errors

        return "checkpoint", checkpoint_errors(folder)
    if (folder / MODEL_CONFIG).is_file():
        return "model", _model_errors(folder)
    try:
        shards = shard_folder(folder)
    except NoShardFolder as error:
        raise UserError(
            f"{folder}: no run ({CONFIG_FILE}), shard folder (manifest.json), checkpoint ({CHECKPOINT_STATE}) or model "
            f"({MODEL_CONFIG}); name one of these"
        ) from error
    return "shard folder", shard_errors(folder, tokenizer or tokenizer_near(shards))


def _model_errors(folder: Path) -> list[str]:
    """Return what is wrong with a model folder that Malmoi exported."""
    file = folder / MODEL_RECORD
    try:
        content = file.read_bytes()
        # An older version recorded no checksum of the record itself.
        records = json.loads(content) if content[:1] == b"[" else parse_checked_json(content)["files"]
        files = tuple(FileRecord(**record) for record in records)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [f"{file}: missing or broken ({error}), so the model cannot be checked; {EXPORT_AGAIN}"]
    return file_errors(folder, files, EXPORT_AGAIN)


def run_errors(folder: Path) -> Iterator[str]:
    """Yield what is wrong with anything in a run folder: its result and what that records, tokenizer, shards,
    checkpoints and model, as far as they are there."""
    try:
        result, tuned = finished_result(folder), finished_finetuning(folder)
        recorded = (*(result.files if result else ()), *(tuned.recorded if tuned else ()))
        yield from file_errors(folder, recorded, "restore it from a copy, or train again in another --run")
    except DamagedFileError as error:
        yield str(error)
    if wrong := tokenizer_damage(folder / TOKENIZER_FOLDER):
        yield f"{wrong}; train again, which builds it anew"
    for memory in sorted((folder / SHARDS_FOLDER).glob(".*.json")):
        try:
            parse_checked_json(memory.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            yield f"{memory}: damaged ({one_line(error)}); train again, which makes it anew"
    parts = [folder / MODEL_FOLDER]
    for group in (folder / SHARDS_FOLDER, folder / CHECKPOINTS_FOLDER):
        parts += sorted(group.glob("[!.]*")) if group.is_dir() else []
    for part in parts:
        if part.is_dir():
            yield from folder_errors(part)[1]
