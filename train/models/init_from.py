"""Whether a run's tokenizer and context fit the model that training begins from, by its files and without torch."""

from pathlib import Path

from malmoi.configs.run import RunSettings
from malmoi.data_prep.tokenizer.encode import auto_tokenizer, vocabulary_size
from malmoi.errors import UserError
from malmoi.train.models.gpt2_folder import hf_config

VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model")


def check_init_fit(init_from: str, settings: RunSettings, tokenizer: Path) -> None:
    """Check that the run's tokenizer and block size fit the model that it begins from.

    Args:
        tokenizer: folder of the tokenizer that the run uses.

    Raises:
        UserError: they need a resize that was not asked for, or the tokenizer gives the model's tokens other ids.
    """
    folder = Path(init_from)
    config = hf_config(folder)
    tokens, rows = vocabulary_size(tokenizer), config["vocab_size"]
    if tokens > rows and not settings.init_resize:
        raise UserError(
            f"{folder}: has rows for {rows} tokens and {tokenizer} has {tokens}; --init_resize true adds rows drawn "
            "at random, and without tokenizer.path the model's own tokenizer is used"
        )
    block, context = settings.model.block_size, config["n_positions"]
    if block != context and not settings.init_resize:
        change = "draws the new positions at random" if block > context else "cuts the positions after it off"
        raise UserError(
            f"{folder}: reads {context} tokens and model.block_size is {block}; --init_resize true {change}, or set "
            f"--model.block_size {context}"
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
