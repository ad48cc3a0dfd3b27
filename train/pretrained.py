"""A model folder that a run begins from: whether it fits the run, by what it says of itself and without torch."""

import json
from pathlib import Path
from typing import Any

from configs.errors import BadInput
from configs.schema import ModelSettings, RunSettings
from data_prep.encode import vocabulary_size
from inference.model_files import CONFIG_FILE, WEIGHTS_FILE, has_weights

VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model")
SHAPE = ("n_layer", "n_head", "n_embd")
GPT2_DEFAULTS = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
"""What a configuration that leaves a value out means by it."""


def check_folder(folder: Path, model: ModelSettings) -> None:
    """See that `folder` holds a GPT-2 of the shape of `model`, as safetensors.

    Raises:
        BadInput: it does not.
    """
    config = model_config(folder)
    kind = config.get("model_type")
    if kind != "gpt2":
        raise BadInput(f"{folder}: holds a model of type {kind}; --init_from takes a GPT-2")
    if not has_weights(folder):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise BadInput(
                f"{folder}: its weights are a pickle, which can run code when it is loaded; where you trust it, write "
                "safetensors once: `GPT2LMHeadModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)` in Python"
            )
        raise BadInput(f"{folder}: no weights ({WEIGHTS_FILE}); download or export the model again")
    differing = [name for name in SHAPE if config[name] != getattr(model, name)]
    if differing:
        has = ", ".join(f"{name} {config[name]}" for name in differing)
        flags = " ".join(f"--model.{name} {config[name]}" for name in SHAPE)
        raise BadInput(f"{folder}: has {has}, unlike the settings; a model keeps its shape: set {flags}")
    if config.get("n_inner") not in (None, 4 * model.n_embd):
        raise BadInput(f"{folder}: n_inner {config['n_inner']} is not 4 x n_embd; choose another model")
    for name, wanted in (("tie_word_embeddings", True), ("add_cross_attention", False)):
        if config.get(name, wanted) != wanted:
            raise BadInput(f"{folder}: {name} is {config[name]}, which GPT-2 has not; choose another model")


def check_fit(settings: RunSettings, tokenizer: Path) -> None:
    """See that the run's tokenizer and block fit the model that it begins from.

    Args:
        tokenizer: folder of the tokenizer that the run uses.

    Raises:
        BadInput: they need a resize that was not asked for, or the tokenizer gives the model's tokens other ids.
    """
    assert settings.init_from is not None
    folder = Path(settings.init_from)
    config = model_config(folder)
    tokens, rows = vocabulary_size(tokenizer), config["vocab_size"]
    if tokens > rows and not settings.init_resize:
        raise BadInput(
            f"{folder}: has rows for {rows} tokens and {tokenizer} has {tokens}; --init_resize true adds rows drawn "
            "afresh, and without tokenizer.path the model's own tokenizer is used"
        )
    block, context = settings.model.block_size, config["n_positions"]
    if block != context and not settings.init_resize:
        change = "draws the new positions afresh" if block > context else "cuts the positions after it off"
        raise BadInput(
            f"{folder}: reads {context} tokens and model.block_size is {block}; --init_resize true {change}, or set "
            f"--model.block_size {context}"
        )
    if tokenizer.resolve() != folder.resolve() and any((folder / name).is_file() for name in VOCABULARY_FILES):
        _check_ids(folder, tokenizer)


def _check_ids(folder: Path, tokenizer: Path) -> None:
    """See that each of the model's own tokens has the same id in the run's tokenizer."""
    from transformers import AutoTokenizer

    theirs, ours = (
        AutoTokenizer.from_pretrained(str(path), local_files_only=True).get_vocab() for path in (folder, tokenizer)
    )
    moved = [token for token, number in sorted(theirs.items(), key=lambda entry: entry[1]) if ours.get(token) != number]
    if moved:
        raise BadInput(
            f"{tokenizer}: of the tokens of {folder}, {len(moved)} of {len(theirs)} have another id or none "
            f"({moved[0]!r} is the first); add tokens behind the model's own, or leave tokenizer.path out"
        )


def model_config(folder: Path) -> dict[str, Any]:
    """What `folder/config.json` says, GPT-2's defaults filled in.

    Raises:
        BadInput: there is none, or it is no JSON object.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; --init_from takes a model folder, downloaded or from RUN/model")
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise BadInput(f"{file}: missing, so {folder} is no model folder; --init_from takes one, such as RUN/model")
    try:
        config = json.loads(file.read_bytes())
        return {**GPT2_DEFAULTS, **config}
    except (ValueError, TypeError) as error:
        raise BadInput(f"{file}: no JSON object ({error}); download or export the model again") from error
