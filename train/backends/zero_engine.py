"""ZeRO's engine: the part of backends `zero1` to `zero3` that needs DeepSpeed's import, which takes seconds.

DeepSpeed keeps flat pieces; checkpoints go through its `safe_get_full_*` functions, which give full tensors
(https://deepspeed.readthedocs.io/en/latest/zero3.html#debugging).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn
from transformers.integrations import unset_hf_deepspeed_config

from malmoi.registry import registry_entry
from malmoi.train.backends.base import BackendInputs, StepResult
from malmoi.train.backends.loss_scale import LossScaleState
from malmoi.train.backends.state_dict import WEIGHT, require_declared_state, require_known_state, tensor_of_shape
from malmoi.train.distributed.async_copy import AsyncScalar
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.optim.lr_schedule import set_learning_rate
from malmoi.train.optim.spec import PieceRun


@contextmanager
def _one_class_for_stages_1_and_2() -> Iterator[None]:
    """Have stage 1 with fp32 gradients in bf16 use the class of every other precision and stage.

    DeepSpeed takes its BF16_Optimizer there, which steps although a gradient is not finite and cannot be offloaded.
    """
    chosen = deepspeed.DeepSpeedEngine._do_optimizer_sanity_check

    def always_zero(engine: Any, optimizer: torch.optim.Optimizer) -> Any:
        chosen(engine, optimizer)
        return ZERO_OPTIMIZATION

    deepspeed.DeepSpeedEngine._do_optimizer_sanity_check = always_zero
    try:
        yield
    finally:
        deepspeed.DeepSpeedEngine._do_optimizer_sanity_check = chosen


class ZeroBackend:
    """Backends `zero1`, `zero2` and `zero3`: weights in the run's precision, with fp32 masters."""

    def __init__(self, inputs: BackendInputs) -> None:
        env, model, accelerator = inputs.env, inputs.model, inputs.env.accelerator
        config = accelerator.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = inputs.micro_batch_size
        config["gradient_accumulation_steps"] = inputs.accumulation
        self._dp_size = env.dims.dp_size
        self._stage = int(config["zero_optimization"]["stage"])
        self._is_last = True
        initial: dict[str, Tensor] = {}
        if env.precision != "fp32":
            initial = {f"{WEIGHT}.{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
        # Otherwise Accelerate warns that the two differ.
        accelerator.gradient_accumulation_steps = inputs.accumulation
        self._spec = registry_entry(OPTIMIZERS, "optim.name", inputs.optim.name)
        self._optimizer = self._spec.build(inputs.spec.param_groups(model), inputs.optim, env.device)
        with _one_class_for_stages_1_and_2():
            self._engine, _ = accelerator.prepare(model, self._optimizer)
        # Otherwise transformers would partition every model that this process loads from now on.
        unset_hf_deepspeed_config()
        self._zero: Any = self._engine.optimizer
        runs = self._runs_by_piece()
        self._piece_of = {parameter: piece for piece, held in runs.items() for parameter in held}
        if self._spec.lay_out is not None:
            pieces = {piece: list(held.values()) for piece, held in runs.items()}
            self._spec.lay_out(self._optimizer, pieces, self._engine.device)
        self._scale: LossScaleState | None = None
        if self._zero.loss_scaler.dynamic:
            self._scale = LossScaleState()
            # Whether an overflow at the smallest scale ends the run is the loop's to say, in one line.
            self._zero.loss_scaler.raise_error_at_min_scale = False
        self._unwrapped = model
        self.model: nn.Module = self._engine
        if initial:
            # DeepSpeed has rounded the masters to half precision.
            self._set_weights(initial)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self._is_last = is_last
        self._engine.set_gradient_accumulation_boundary(is_boundary=is_last)
        yield

    def backward(self, loss_sum: Tensor, num_target_tokens: int) -> None:
        # Gradients are averaged over the ranks: the factor makes that the mean over all targets.
        self._engine.backward(loss_sum * (self._dp_size / num_target_tokens), scale_wrt_gas=False)
        if not self._is_last:
            self._engine.step()

    def step(self, lr: float) -> StepResult:
        set_learning_rate(self._zero, lr)
        self._engine.step()
        if self._scale is not None:
            # DeepSpeed's own grows a step later than torch's, and does not count from there.
            self.set_loss_scale(self._scale.after(skipped=bool(self._zero.overflow)))
        norm = math.inf if self._zero.overflow else float(self._engine.get_global_grad_norm())
        return StepResult(AsyncScalar(torch.tensor(norm)), is_pending=False)

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._unwrapped.named_parameters():
            yield f"{WEIGHT}.{name}", safe_get_full_fp32_param(parameter)
        if not any(self._flat_state().values()):
            return
        require_declared_state(self._zero.optimizer, self._spec)
        self._link_state()
        for name, parameter in self._unwrapped.named_parameters():
            state = self._flat_state()[self._piece_of[parameter]]
            for key in sorted(self._spec.scalar_keys & state.keys()):
                yield f"{key}.{name}", state[key]
            for key in sorted(self._spec.state_keys & state.keys()):
                yield f"{key}.{name}", safe_get_full_optimizer_state(parameter, key)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        require_known_state(tensors, self._unwrapped, self._spec)
        self._set_weights(tensors)
        self._flat_state().clear()
        if all(name.startswith(f"{WEIGHT}.") for name in tensors):
            return
        for name, parameter in self._unwrapped.named_parameters():
            piece = self._piece_of[parameter]
            if piece in self._flat_state():
                continue
            # What it has of one parameter it has of all in a piece.
            self._flat_state()[piece] = {
                key: tensors[f"{key}.{name}"].to(piece.device, copy=True)
                for key in self._spec.scalar_keys
                if f"{key}.{name}" in tensors
            } | {key: torch.zeros_like(piece) for key in self._spec.state_keys if f"{key}.{name}" in tensors}
        self._link_state()
        for name, parameter in self._unwrapped.named_parameters():
            for key in sorted(self._spec.state_keys & self._flat_state()[self._piece_of[parameter]].keys()):
                safe_set_full_optimizer_state(parameter, self._full_tensor(tensors, key, name, parameter), key)

    def loss_scale(self) -> LossScaleState | None:
        return self._scale

    def set_loss_scale(self, state: LossScaleState) -> None:
        if self._scale is not None:
            self._scale = state
            self._zero.loss_scaler.cur_scale = state.scale

    def close(self) -> None:
        # ZeRO 3 sometimes aborts at the interpreter's end while its engine lives.
        self._engine.destroy()

    def _flat_state(self) -> dict[Tensor, dict[str, Tensor]]:
        """Return the optimizer's state by the flat piece of fp32 weights that this rank steps."""
        state: dict[Tensor, dict[str, Tensor]] = self._zero.optimizer.state
        return state

    def _link_state(self) -> None:
        """Have stages 1 and 2 map each parameter to its slice of the flat state: DeepSpeed itself does so when the
        first group has been stepped and the others have no state yet."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _runs_by_piece(self) -> dict[Tensor, dict[Tensor, PieceRun]]:
        """Return which run of each parameter is where in the flat fp32 pieces that this rank steps."""
        ranks, own = range(self._dp_size), torch.distributed.get_rank()
        found: dict[Tensor, dict[Tensor, PieceRun]] = {}
        if self._stage == 3:
            # A piece has a part of each parameter, all of a length, one after the other.
            for piece, parameters in zip(self._zero.fp32_partitioned_groups_flat, self._zero.fp16_groups, strict=True):
                start = 0
                for parameter in parameters:
                    part, size = parameter.partition_numel(), parameter.ds_numel
                    runs = tuple(max(0, min(part, size - rank * part)) for rank in ranks)
                    found.setdefault(piece, {})[parameter] = PieceRun(parameter.ds_shape, start, runs)
                    start += part
            return found
        # A group's parameters lie one after the other, cut into a piece for each rank.
        for piece, parameters, offsets in zip(
            self._zero.single_partition_of_fp32_groups,
            self._zero.round_robin_bit16_groups,
            self._zero.round_robin_bit16_offsets,
            strict=True,
        ):
            for parameter, offset in zip(parameters, offsets, strict=True):
                cuts = [min(max(rank * len(piece) - offset, 0), parameter.numel()) for rank in (*ranks, self._dp_size)]
                runs = tuple(end - begin for begin, end in pairwise(cuts))
                start = max(0, offset - own * len(piece))
                found.setdefault(piece, {})[parameter] = PieceRun(parameter.shape, min(start, len(piece)), runs)
        return found

    def _full_tensor(self, tensors: Mapping[str, Tensor], key: str, name: str, parameter: Tensor) -> Tensor:
        # Stage 3 leaves a parameter empty, and its shape in `ds_shape`.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        return tensor_of_shape(tensors, f"{key}.{name}", shape).to(self._engine.device)

    def _set_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._unwrapped.named_parameters():
            value = self._full_tensor(tensors, WEIGHT, name, parameter)
            with (
                deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3),
                torch.no_grad(),
            ):
                if self._stage < 3 or torch.distributed.get_rank() == 0:
                    parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value)
