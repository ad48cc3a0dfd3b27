"""Backends `zero1`, `zero2`, `zero3`: DeepSpeed's ZeRO through Accelerate, which shards the optimizer state (stage 1),
gradients (2) and weights (3)."""

import logging
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import InitProcessGroupKwargs

from malmoi.errors import UserError
from malmoi.train.backends.base import AcceleratorInputs, Backend, BackendInputs, BackendSpec
from malmoi.train.backends.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE_POWER, MINIMUM_SCALE
from malmoi.train.distributed.process_groups import DeviceType

REDUCE_BUCKET, GATHER_BUCKET = 25_000_000, 100_000_000
"""Numbers that are sent at once. DeepSpeed's 500 million would hold all gradients of a GPT-2 back to the end of the
backward pass; weights are gathered when the step is done, with nothing to overlap."""
LAUNCHER_PREFIXES = ("ACCELERATE_DEEPSPEED_", "ACCELERATE_GRADIENT_", "ACCELERATE_CONFIG_DS_FIELDS")


def zero_config(stage: int, inputs: AcceleratorInputs) -> dict[str, Any]:
    """Return DeepSpeed's configuration: https://www.deepspeed.ai/docs/config-json.

    Clipping is always set, since DeepSpeed clips at 1.0 where it is not. The loss scale moves as torch's
    GradScaler does.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "stage3_gather_16bit_weights_on_model_save": True,
        # For gradients to be reduced during the backward pass, a device needs streams.
        "overlap_comm": inputs.device_type == "cuda",
        "reduce_bucket_size": REDUCE_BUCKET,
        "allgather_bucket_size": GATHER_BUCKET,
    }
    if inputs.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        # Placeholders: micro-batch and accumulation are known when the ranks are, and set then.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": inputs.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }
    if inputs.precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": INITIAL_SCALE_POWER,
            "loss_scale_window": GROWTH_INTERVAL,
            "hysteresis": 1,
            "min_loss_scale": int(MINIMUM_SCALE),
        }
    elif inputs.precision == "bf16":
        config["bf16"] = {"enabled": True}
    if inputs.precision != "fp32":
        # By default both are the weights' type, and the sum of many micro-batches loses what each adds.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def deepspeed_accelerator(stage: int, inputs: AcceleratorInputs) -> Accelerator:
    """Return an Accelerator that prepares models with ZeRO of this stage.

    Raises:
        UserError: DeepSpeed has no fp16 on the device.
    """
    from deepspeed.accelerator import get_accelerator

    if inputs.precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise UserError(
            "train.precision fp16: DeepSpeed has no fp16 on this device; use fp32 or bf16, or another backend"
        )
    _quiet_deepspeed(inputs.device_type)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    # What the launcher's file says of these is in our own configuration, which alone must count.
    for name in [name for name in os.environ if name.startswith(LAUNCHER_PREFIXES)]:
        del os.environ[name]
    mixed = "no" if inputs.precision == "fp32" else inputs.precision
    os.environ["ACCELERATE_MIXED_PRECISION"] = mixed
    return Accelerator(
        mixed_precision=mixed,
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=zero_config(stage, inputs)),
        kwargs_handlers=[
            InitProcessGroupKwargs(backend="gloo" if inputs.device_type == "cpu" else "nccl", timeout=inputs.timeout)
        ],
    )


def _quiet_deepspeed(device_type: DeviceType) -> None:
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # ZeRO 3 gathers by functions that newer torch warns of, several times a step.
    warnings.filterwarnings("ignore", r"`?torch\.distributed\.\w+`? is deprecated", FutureWarning)
    if device_type == "cpu":
        # Compiling its shared-memory collectives takes half a minute and changes no result.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def build_zero(inputs: BackendInputs) -> Backend:
    """Return the engine; only now is DeepSpeed imported."""
    from malmoi.train.backends.zero_engine import ZeroBackend

    return ZeroBackend(inputs)


def zero_state_bytes(stage: int) -> Callable[[int, int, int, bool], int]:
    """Return a `BackendSpec.state_bytes`.

    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (2020), section 5, with
    gradients in fp32: in 16 bits weights take 2 bytes, in 32 bits 4; DeepSpeed steps an fp32 copy of them in both.
    Stage 1 shards that copy and the optimizer's state, 2 gradients too, 3 all. In 16 bits stage 1 keeps its reduced
    shard of the gradients beside the whole ones.
    """

    def state_bytes(parameters: int, optimizer_bytes: int, ranks: int, half: bool) -> int:
        weights, gradients, masters = (2 if half else 4) * parameters, 4 * parameters, 4 * parameters
        kept = (0 if stage == 3 else weights) + (gradients if stage == 1 else 0)
        shared = optimizer_bytes + masters + (weights if stage == 3 else 0)
        if stage > 1 or half:
            shared += gradients
        return kept + -(-shared // ranks)

    return state_bytes


def zero_spec(stage: int) -> BackendSpec:
    """Return the registry entry of a stage."""
    return BackendSpec(
        build=build_zero,
        shards_weights=stage == 3,
        state_bytes=zero_state_bytes(stage),
        new_accelerator=partial(deepspeed_accelerator, stage),
        needs_process_group=True,
        splits_matrices=True,
        can_offload=True,
        uses_deepspeed=True,
    )
