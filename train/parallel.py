"""Where a run computes: device, ranks and precision, through Accelerate; refused where it came up wrong."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from configs.errors import BadInput
from configs.schema import Precision

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LaunchedRanks:
    """What the launcher put into the environment."""

    world_size: int
    backend: str | None
    """The sharding that `accelerate launch` asked for, if any."""


def launched_ranks() -> LaunchedRanks:
    """Read the launcher's environment variables."""
    asked = [
        name
        for name, variable in (("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"), ("FSDP", "ACCELERATE_USE_FSDP"))
        if os.environ.get(variable, "false").lower() == "true"
    ]
    return LaunchedRanks(int(os.environ.get("WORLD_SIZE", "1")), asked[0] if asked else None)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolved_precision(asked: Precision, device: torch.device) -> Precision:
    """`asked`, or for `auto` the fastest that trains well on `device`: bf16, on older GPUs fp16, else fp32."""
    if asked != "auto":
        return asked
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def start_ranks(asked: Precision, run: Path) -> Accelerator:
    """Join the ranks of this run and return Accelerate's view of them.

    Raises:
        BadInput: the launcher asked for ranks or a backend that did not come up.
    """
    launched = launched_ranks()
    if launched.backend is not None:
        raise BadInput(
            f"{launched.backend} is not supported yet; launch with configs/accelerate/ddp.yaml or cpu.yaml instead"
        )
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        # transformers imports DeepSpeed when it saves, which otherwise guesses the device with a warning.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    device = torch.device("cpu" if on_cpu else "cuda")
    precision = resolved_precision(asked, device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=on_cpu,
        log_with="tensorboard",
        project_dir=str(run),
    )
    if accelerator.num_processes != launched.world_size or accelerator.distributed_type not in SUPPORTED:
        raise BadInput(
            f"the launcher started {launched.world_size} ranks, but they came up as {accelerator.num_processes} "
            f"({accelerator.distributed_type.value}) and would train separate models; start them with "
            "`accelerate launch --config_file configs/accelerate/cpu.yaml -m train ...` (ddp.yaml on GPUs)"
        )
    if precision == "fp16" and on_cpu:
        # Accelerate computes in fp32 without a word when fp16 is asked for on a CPU.
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu")
    return accelerator


def precision_of(accelerator: Accelerator) -> Precision:
    """The arithmetic that `accelerator` computes in."""
    named: dict[str, Precision] = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
    return named[accelerator.mixed_precision]
