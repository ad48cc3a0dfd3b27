"""A model folder with a Llama or a Qwen3 that training begins from: whether it fits, by its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malmoi.configs.model import ArchitectureName, ModelSettings, resolved_rotary
from malmoi.errors import UserError
from malmoi.train.models.hf_folder import hf_config, require_model_type, require_same_shape, require_values
from malmoi.train.models.spec import HfSize

SHAPE = ("n_layer", "n_head", "n_embd", "n_kv_head", "head_dim", "n_inner", "rope_theta", "tie_embeddings")
PLAIN = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"}
"""What the training model has; others have more parameters or another attention."""


@dataclass(frozen=True)
class RotaryDefaults:
    """What a configuration that omits a value means."""

    architecture: ArchitectureName
    name: str
    """In words."""
    rope_theta: float
    head_dim: int | None
    """None: as the hidden size and the heads give it."""
    context: int

    def check(self, folder: Path, model: ModelSettings) -> None:
        """Check that `folder` holds such a model of the shape of `model`, as safetensors.

        Raises:
            UserError: it does not.
        """
        config = hf_config(folder)
        require_model_type(folder, config, self.architecture, self.name)
        require_values(folder, config, PLAIN, "the model that is trained")
        require_same_shape(folder, self.shape(folder), resolved_rotary(model), SHAPE)

    def shape(self, folder: Path) -> ModelSettings:
        """Return the shape of the model in `folder`, every value named.

        Raises:
            UserError: the folder holds no such model, or one whose rotary positions are scaled.
        """
        config = hf_config(folder)
        lacking = [
            name
            for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
            if not isinstance(config.get(name), int)
        ]
        if lacking:
            raise UserError(f"{folder}: its configuration names no {lacking[0]}; download or export the model again")
        heads, width = config["num_attention_heads"], config["hidden_size"]
        return ModelSettings(
            architecture=self.architecture,
            n_layer=config["num_hidden_layers"],
            n_head=heads,
            n_embd=width,
            block_size=config.get("max_position_embeddings") or self.context,
            n_kv_head=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or self.head_dim or width // heads,
            n_inner=config["intermediate_size"],
            rope_theta=self._rope_theta(folder, config),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        )

    def size(self, folder: Path) -> HfSize:
        """Return the size of the model in `folder`, whose positions have no weights.

        Raises:
            UserError: the folder holds no model, or one whose configuration names no vocabulary.
        """
        config = hf_config(folder)
        rows = config.get("vocab_size")
        if not isinstance(rows, int):
            raise UserError(f"{folder}: its configuration names no vocab_size; download or export the model again")
        context = config.get("max_position_embeddings") or self.context
        return HfSize(rows, context, has_position_weights=False)

    def _rope_theta(self, folder: Path, config: Mapping[str, Any]) -> float:
        # transformers 5 writes `rope_parameters`, and reads the two older keys.
        rope = {**(config.get("rope_parameters") or config.get("rope_scaling") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UserError(
                f"{folder}: its rotary positions are scaled ({kind}), which training does not know; choose a model "
                "with plain ones"
            )
        return float(rope.get("rope_theta") or config.get("rope_theta") or self.rope_theta)
