"""A model folder, checked and loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from configs.errors import BadInput, first_line
from inference.activation import activate_in_one_pass
from inference.model_files import CONFIG_FILE, WEIGHTS_FILE, has_weights


@dataclass(frozen=True)
class LoadedModel:
    """A model folder in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int:
        """Most tokens that the model sees at once."""
        return int(self.model.config.max_position_embeddings)


def load_model(folder: Path, device: torch.device | None = None) -> LoadedModel:
    """Load a model folder. Weights come from safetensors only.

    Args:
        device: where to; none: the GPU where there is one.

    Raises:
        BadInput: the folder is no model folder, or lacks weights or tokenizer.
    """
    quiet_transformers()
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such model folder; train one with `malmoi train`, it ends in RUN/model")
    if not (folder / CONFIG_FILE).is_file():
        raise BadInput(f"{folder}: no {CONFIG_FILE}, so no model folder; give the folder that `malmoi train` exported")
    if not has_weights(folder):
        raise BadInput(f"{folder}: no weights ({WEIGHTS_FILE}); export the model again")
    _check_architecture(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and safetensors' own alike
        raise BadInput(f"{folder}: cannot be loaded ({first_line(error)}); export the model again") from error
    activate_in_one_pass(model)
    fastest = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedModel(model.to(device or fastest).eval(), tokenizer)


def _check_architecture(folder: Path) -> None:
    """Refuse models that do not predict the next token: `transformers` would load some with new, random parts."""
    try:
        named = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{folder / CONFIG_FILE}: no JSON object ({error}); export the model again") from error
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if named and not known & set(named):
        raise BadInput(
            f"{folder}: holds a {named[0]}, which does not write text; give a causal language model's folder"
        )


def quiet_transformers() -> None:
    """Keep `transformers`' progress bars and advice off the terminal; its errors are raised all the same."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
