"""DeepSpeed's ZeRO through Accelerate: moments (stage 1), gradients (2) and weights (3) cut over the ranks.

DeepSpeed keeps flat pieces; checkpoints go through its `safe_get_full_*` functions, which give whole tensors
(https://deepspeed.readthedocs.io/en/latest/zero3.html#debugging).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.integrations import unset_hf_deepspeed_config

from configs.schema import TrainSettings
from train.backend import Update
from train.loss_scale import LossScaleState
from train.optim import new_optimizer, set_learning_rate
from train.parallel import Placement
from train.parameter_tensors import WEIGHT
from train.transfer import HostNumber
from train.zero_config import zero_stage

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroBackend:
    """Backends `zero1`, `zero2` and `zero3`: weights in the run's precision, with fp32 masters."""

    def __init__(
        self, placement: Placement, model: GPT2LMHeadModel, train: TrainSettings, micro_batch: int, accumulation: int
    ) -> None:
        accelerator = placement.accelerator
        config = accelerator.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = micro_batch
        config["gradient_accumulation_steps"] = accumulation
        self._ranks = placement.ranks
        self._stage = zero_stage(placement.backend)
        self._is_last = True
        initial: dict[str, Tensor] = {}
        if placement.precision != "fp32":
            initial = {f"{WEIGHT}.{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
        # Otherwise Accelerate warns that the two differ.
        accelerator.gradient_accumulation_steps = accumulation
        self._optimizer = new_optimizer(model, train, accelerator.device)
        self._engine, _ = accelerator.prepare(model, self._optimizer)
        # Otherwise transformers would cut every model that this process loads from now on.
        unset_hf_deepspeed_config()
        self._zero: Any = self._engine.optimizer
        self._scale: LossScaleState | None = None
        if self._zero.loss_scaler.dynamic:
            self._scale = LossScaleState()
            # Whether an overflow at the smallest scale ends the run is the loop's to say, in one line.
            self._zero.loss_scaler.raise_error_at_min_scale = False
        self._bare = model
        self.model: nn.Module = self._engine
        if initial:
            # DeepSpeed rounds the masters to half precision on its way.
            self._set_weights(initial)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self._is_last = is_last
        self._engine.set_gradient_accumulation_boundary(is_boundary=is_last)
        yield

    def backward(self, nats: Tensor, global_tokens: int) -> None:
        # Gradients are averaged over the ranks: the factor makes that the mean over all tokens.
        self._engine.backward(nats * (self._ranks / global_tokens), scale_wrt_gas=False)
        if not self._is_last:
            self._engine.step()

    def update(self, rate: float) -> Update:
        set_learning_rate(self._zero, rate)
        self._engine.step()
        if self._scale is not None:
            # DeepSpeed's own grows an update later than torch's, and does not count from there.
            self.set_loss_scale(self._scale.after(skipped=bool(self._zero.overflow)))
        norm = math.inf if self._zero.overflow else float(self._engine.get_global_grad_norm())
        return Update(HostNumber(torch.tensor(norm)), is_late=False)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._bare.named_parameters():
            yield f"{WEIGHT}.{name}", safe_get_full_fp32_param(parameter)
        steps = [state["step"] for state in self._moments().values() if "step" in state]
        if not steps:
            return
        self._link_moments()
        for name, parameter in self._bare.named_parameters():
            yield f"step.{name}", steps[0]
            for moment in MOMENTS:
                yield f"{moment}.{name}", safe_get_full_optimizer_state(parameter, moment)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._set_weights(tensors)
        names = [name for name, _ in self._bare.named_parameters()]
        step = tensors.get(f"step.{names[0]}")
        if step is None:
            self._moments().clear()
            return
        for piece in self._flat_pieces():
            self._moments()[piece] = {
                "step": step.to(piece.device, copy=True),
                **{moment: torch.zeros_like(piece) for moment in MOMENTS},
            }
        self._link_moments()
        for name, parameter in self._bare.named_parameters():
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, tensors[f"{moment}.{name}"].to(self._engine.device), moment)

    def loss_scale(self) -> LossScaleState | None:
        return self._scale

    def set_loss_scale(self, state: LossScaleState) -> None:
        if self._scale is not None:
            self._scale = state
            self._zero.loss_scaler.cur_scale = state.scale

    def close(self) -> None:
        # ZeRO 3 sometimes aborts at the interpreter's end while its engine lives.
        self._engine.destroy()

    def _moments(self) -> dict[Tensor, dict[str, Tensor]]:
        """State of the optimiser under ZeRO, by the flat piece of fp32 weights that this rank updates."""
        state: dict[Tensor, dict[str, Tensor]] = self._zero.optimizer.state
        return state

    def _link_moments(self) -> None:
        """Tell stages 1 and 2 where each parameter's moments lie in the flat pieces: by itself DeepSpeed does so when
        the first group has been stepped and the others have no moments yet."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _flat_pieces(self) -> list[Tensor]:
        pieces = (
            self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        return list(pieces)

    def _set_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._bare.named_parameters():
            value = tensors[f"{WEIGHT}.{name}"].to(self._engine.device)
            with (
                deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3),
                torch.no_grad(),
            ):
                if self._stage < 3 or torch.distributed.get_rank() == 0:
                    parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value)
