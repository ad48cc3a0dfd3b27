"""How a model computes: its attention kernel, activation checkpointing, compilation.

None of it changes what is computed by more than rounding, nor the names of the weights.
"""

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from malmoi.configs.train import Precision, TrainSettings, check_attention
from malmoi.errors import UserError
from malmoi.inference.model_folder import use_fused_gelu
from malmoi.train.models.attention import CPU_SDPA


def missing_compiler() -> str | None:
    """Return what `torch.compile` and Triton lack on this machine, or None."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler '{compiler}' on the PATH"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if headers.is_file() else f"no Python headers ({headers}, in a package like python3-dev)"


def configure_compute(
    model: nn.Module, blocks: Sequence[nn.Module], settings: TrainSettings, precision: Precision, document_mask: bool
) -> None:
    """Set how `model`, a `PreTrainedModel`, computes; before a backend wraps it.

    Args:
        blocks: the model's transformer blocks, which are compiled one by one.
        precision: the resolved one, not `auto`.

    Raises:
        UserError: what is requested is not installed, or cannot be combined.
    """
    check_attention(settings, precision, document_mask)
    on_cpu_in_16_bits = precision != "fp32" and not torch.cuda.is_available()
    attention = CPU_SDPA if settings.attention == "sdpa" and on_cpu_in_16_bits else settings.attention
    model.set_attn_implementation(attention)  # type: ignore[operator]
    use_fused_gelu(model)
    if settings.activation_checkpointing:
        # Another name for it from transformers 5.24 on, under which the old one warns.
        enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if settings.compile:
        missing = missing_compiler()
        if missing is not None:
            raise UserError(f"train.compile: {missing}; install it, or set train.compile false")
        for block in blocks:
            block.compile()
