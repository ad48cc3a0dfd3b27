"""GPT-2's activation in one pass over memory, for training and for generation."""

from torch import nn
from transformers.activations import NewGELUActivation


def activate_in_one_pass(model: nn.Module) -> None:
    """Give GPT-2's activation, eight passes over memory in `transformers`, torch's kernel for it, equal to rounding."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
