"""How a model computes: the kernel of its attention, what it keeps for the backward pass, compiled or not.

None of it changes what is computed by more than rounding, nor the names of the weights.
"""

from importlib.util import find_spec

import torch
from transformers import GPT2LMHeadModel

from configs.errors import BadInput
from configs.schema import Precision, TrainSettings
from inference.activation import activate_in_one_pass
from train.attention import PROCESSOR_SDPA
from train.compiler import missing_compiler


def configured(
    model: GPT2LMHeadModel, settings: TrainSettings, precision: Precision, document_mask: bool
) -> GPT2LMHeadModel:
    """`model` itself, set to compute as `settings` say; before it is wrapped for its ranks.

    Args:
        precision: the resolved one, not `auto`.

    Raises:
        BadInput: what is asked for is not installed, or does not go together.
    """
    if settings.attention == "flash_attention_2":
        _check_flash_attention(precision, document_mask)
    on_cpu_in_16_bits = precision != "fp32" and not torch.cuda.is_available()
    model.set_attn_implementation(
        PROCESSOR_SDPA if settings.attention == "sdpa" and on_cpu_in_16_bits else settings.attention
    )
    activate_in_one_pass(model)
    if settings.activation_checkpointing:
        # Another name for it from transformers 5.24 on, under which the old one warns.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if settings.compile:
        missing = missing_compiler()
        if missing is not None:
            raise BadInput(f"train.compile: {missing}; install it, or set train.compile false")
        for block in model.transformer.h:
            block.compile()
    return model


def _check_flash_attention(precision: Precision, document_mask: bool) -> None:
    if document_mask:
        raise BadInput(
            "train.attention flash_attention_2 takes no mask, which data.document_mask needs; choose sdpa instead"
        )
    if precision == "fp32":
        raise BadInput(
            "train.attention flash_attention_2 computes in 16 bits only; choose sdpa, or train.precision bf16 or fp16"
        )
    if find_spec("flash_attn") is None:
        raise BadInput(
            "train.attention flash_attention_2 needs the package flash-attn, which is not installed "
            "(`pip install flash-attn --no-build-isolation`, with CUDA); sdpa uses torch's own flash kernel"
        )
