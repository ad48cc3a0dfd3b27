"""What a rank knows of where it computes."""

import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from malmoi.configs.train import BackendName, Precision
from malmoi.train.distributed.device import has_fast_bf16
from malmoi.train.distributed.launch_env import LaunchEnv
from malmoi.train.distributed.parallel_dims import ParallelDims

HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DistEnv:
    """Device, ranks, backend and precision of a run, as they came up."""

    accelerator: Accelerator
    backend: BackendName
    """Never `auto`."""
    precision: Precision
    """Never `auto`."""
    launch: LaunchEnv
    dims: ParallelDims
    offload: bool = False
    """Whether the backend keeps state in host memory."""
    lent_variables: tuple[str, ...] = ()
    """Environment variables set for a process group of one rank, to be removed with it."""

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def is_half(self) -> bool:
        """Whether the forward pass computes in 16 bits."""
        return self.precision in HALF_DTYPES

    def leave(self) -> None:
        """End what the ranks share, so that this process can train again by itself."""
        self.accelerator.end_training()
        for name in self.lent_variables:
            os.environ.pop(name, None)


def resolved_precision(requested: Precision, device: torch.device) -> Precision:
    """The precision requested, or for `auto` the fastest that trains well on `device`: bf16, on older GPUs fp16, else
    fp32."""
    if requested != "auto":
        return requested
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"
