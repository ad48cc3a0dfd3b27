"""Check and load a model folder: `config.json`, safetensors and a tokenizer, as `save_pretrained` writes them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from malmoi.errors import UserError, first_line
from malmoi.inference.model_files import CONFIG_FILE, check_model_files


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model and its tokenizer in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path | None = None
    """Folder that both were loaded from; none for a model that was made in memory."""

    @property
    def context_length(self) -> int:
        """Tokens that the model reads at most."""
        return int(self.model.config.max_position_embeddings)


def load_model(path: str | Path, device: str | torch.device | None = None) -> LoadedModel:
    """Load a model folder: one that training exported, or any causal language model in Hugging Face form.

    Weights are read from safetensors only, never from a pickle.

    Args:
        path: folder with `config.json`, `model.safetensors` (or several files and their index) and a tokenizer.
        device: device of the model; none: the GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such folder, it lacks weights or a tokenizer, or it holds another kind of model.
    """
    folder = Path(path)
    quiet_transformers()
    check_model_files(folder)
    _check_architecture(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and safetensors' own alike
        raise UserError(f"{folder}: cannot be loaded ({first_line(error)}); export the model again") from error
    use_fused_gelu(model)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedModel(model.to(torch.device(device or default)).eval(), tokenizer, folder)


def as_loaded(model: LoadedModel | str | Path) -> LoadedModel:
    """Return `model`, loaded first where it is a path.

    Raises:
        UserError: the path is no model folder.
    """
    return model if isinstance(model, LoadedModel) else load_model(model)


def _check_architecture(folder: Path) -> None:
    """Refuse models that do not predict the next token: `transformers` would load some with new, random parts."""
    try:
        named = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG_FILE}: no JSON object ({error}); export the model again") from error
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if named and not known & set(named):
        raise UserError(f"{folder}: holds a {named[0]}, which is no causal language model; give the folder of one")


def use_fused_gelu(model: nn.Module) -> None:
    """Replace GPT-2's activation, eight passes over memory in `transformers`, by torch's kernel, equal to rounding."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def quiet_transformers() -> None:
    """Turn off `transformers`' progress bars and advice; its errors are raised all the same."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
