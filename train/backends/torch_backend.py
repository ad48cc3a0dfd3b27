"""What one process, DDP and FSDP2 share: a torch optimizer over named parameters, and fp16's loss scale."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from malmoi.registry import registry_entry
from malmoi.train.backends.base import BackendInputs, StepResult
from malmoi.train.backends.loss_scale import LossScaleState
from malmoi.train.backends.state_dict import clip_and_step, load_state_tensors, require_declared_state, state_tensors
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.optim.lr_schedule import set_learning_rate


class TorchBackend:
    """Backward, step and state of a model whose gradients are averaged over the ranks."""

    def __init__(self, inputs: BackendInputs, unwrapped: nn.Module) -> None:
        """Make the optimizer over `unwrapped`, whose parameters are those that are trained."""
        self._dp_size = inputs.env.dims.dp_size
        self._max_grad_norm = inputs.optim.max_grad_norm
        self._scale = LossScaleState() if inputs.env.precision == "fp16" else None
        self._unwrapped = unwrapped
        self._spec = registry_entry(OPTIMIZERS, "optim.name", inputs.optim.name)
        parameters = inputs.spec.param_groups(unwrapped)
        self._optimizer = self._spec.build(parameters, inputs.optim, inputs.env.device)

    def backward(self, loss_sum: Tensor, num_target_tokens: int) -> None:
        # Gradients are averaged over the ranks: the factor makes that the mean over all targets.
        scale = self._scale.scale if self._scale else 1.0
        torch.autograd.backward(loss_sum * (self._dp_size / num_target_tokens * scale))

    def step(self, lr: float) -> StepResult:
        set_learning_rate(self._optimizer, lr)
        result = clip_and_step(self._unwrapped, self._optimizer, self._max_grad_norm, self._scale)
        if self._scale:
            # The next forward pass needs the scale.
            self._scale = self._scale.after(not math.isfinite(result.grad_norm.value()))
            return replace(result, is_pending=False)
        return result

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        require_declared_state(self._optimizer, self._spec)
        return state_tensors(self._unwrapped, self._optimizer)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        load_state_tensors(self._unwrapped, self._optimizer, self._spec, tensors)

    def loss_scale(self) -> LossScaleState | None:
        return self._scale

    def set_loss_scale(self, state: LossScaleState) -> None:
        if self._scale is not None:
            self._scale = state

    def close(self) -> None:
        """Nothing outlives the process."""
