"""DeepSpeed's configuration, every number of it from the run's own settings."""

from typing import Any

from configs.errors import BadInput
from configs.schema import BackendName, Precision, TrainSettings
from train.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE_POWER, MINIMUM_SCALE

STAGE_OF = {"zero1": 1, "zero2": 2, "zero3": 3}
HALF_SECTION: dict[Precision, str] = {"bf16": "bf16", "fp16": "fp16"}
REDUCE_BUCKET, GATHER_BUCKET = 25_000_000, 100_000_000
"""Numbers that are sent at once. DeepSpeed's 500 million would hold all gradients of a GPT-2 back to the end of the
backward pass; weights are gathered when the step is done, with nothing to overlap."""


def zero_stage(backend: BackendName) -> int:
    """The ZeRO stage of a backend, 0 for one that is none."""
    return STAGE_OF.get(backend, 0)


def require_whole_matrices(train: TrainSettings, backend: BackendName) -> None:
    """See that the optimiser is not Muon under ZeRO, which cuts matrices into pieces.

    Raises:
        BadInput: it is.
    """
    if train.optimizer == "muon" and zero_stage(backend):
        raise BadInput(
            f"train.optimizer muon needs whole matrices, which {backend} cuts into flat pieces; use adamw, or "
            "the backend ddp or fsdp2"
        )


def zero_config(train: TrainSettings, stage: int, offload: bool, precision: Precision, overlap: bool) -> dict[str, Any]:
    """DeepSpeed's JSON: https://www.deepspeed.ai/docs/config-json.

    Args:
        overlap: whether gradients travel while the backward pass computes, for which a device needs streams.

    Clipping is always written down, since DeepSpeed clips at 1.0 where it is not. The loss scale moves as torch's
    GradScaler does.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "stage3_gather_16bit_weights_on_model_save": True,
        "overlap_comm": overlap,
        "reduce_bucket_size": REDUCE_BUCKET,
        "allgather_bucket_size": GATHER_BUCKET,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        # Placeholders: micro-batch and accumulation are known when the ranks are, and set then.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }
    if precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": INITIAL_SCALE_POWER,
            "loss_scale_window": GROWTH_INTERVAL,
            "hysteresis": 1,
            "min_loss_scale": int(MINIMUM_SCALE),
        }
    elif precision == "bf16":
        config["bf16"] = {"enabled": True}
    return config
