"""Whether a run's tokenizer and context fit the model that training begins from, by its files."""

from pathlib import Path

from malmoi.configs.run import RunSettings
from malmoi.data_prep.tokenizer.encode import auto_tokenizer, vocabulary_size
from malmoi.errors import UserError
from malmoi.registry import registry_entry
from malmoi.train.models import MODELS

VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model")


def check_init_fit(init_from: str, settings: RunSettings, tokenizer: Path) -> None:
    """Check that the run's tokenizer and block size fit the model that it begins from.

    Args:
        tokenizer: folder of the tokenizer that the run uses.

    Raises:
        UserError: they need a resize that was not asked for, or the tokenizer gives the model's tokens other ids.
    """
    folder = Path(init_from)
    size = registry_entry(MODELS, "model.architecture", settings.model.architecture).hf_size(folder)
    tokens = vocabulary_size(tokenizer)
    if tokens > size.rows and not settings.init_resize:
        raise UserError(
            f"{folder}: has rows for {size.rows} tokens and {tokenizer} has {tokens}; --init_resize true adds rows "
            "drawn at random, and without tokenizer.path the model's own tokenizer is used"
        )
    block = settings.model.block_size
    needs_resize = block > size.context or (size.has_position_weights and block < size.context)
    if needs_resize and not settings.init_resize:
        if not size.has_position_weights:
            change = "has it read more than it was trained for"
        else:
            change = "draws the new positions at random" if block > size.context else "cuts the positions after it off"
        raise UserError(
            f"{folder}: reads {size.context} tokens and model.block_size is {block}; --init_resize true {change}, or "
            f"set --model.block_size {size.context}"
        )
    if tokenizer.resolve() != folder.resolve() and any((folder / name).is_file() for name in VOCABULARY_FILES):
        _check_ids(folder, tokenizer)


def _check_ids(folder: Path, tokenizer: Path) -> None:
    """Check that each of the model's own tokens has the same id in the run's tokenizer."""
    theirs, ours = (auto_tokenizer(path).get_vocab() for path in (folder, tokenizer))
    moved = [token for token, number in sorted(theirs.items(), key=lambda entry: entry[1]) if ours.get(token) != number]
    if moved:
        raise UserError(
            f"{tokenizer}: of the tokens of {folder}, {len(moved)} of {len(theirs)} have another id or none "
            f"({moved[0]!r} is the first); add tokens behind the model's own, or leave tokenizer.path out"
        )
