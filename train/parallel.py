"""Where a run computes: device, ranks, precision and backend, through Accelerate; refused where it came up wrong."""

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import distributed
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from configs.errors import BadInput
from configs.schema import BackendName, ParallelSettings, Precision, Sharding, TrainSettings
from train.freed_memory import keep_freed_memory
from train.hardware import has_fast_bf16
from train.launcher import LaunchedRanks, launched_ranks
from train.zero_config import require_whole_matrices, zero_config, zero_stage

TRACKERS_FOLDER = "tensorboard"
LAUNCHER_PREFIXES = ("ACCELERATE_DEEPSPEED_", "ACCELERATE_GRADIENT_", "ACCELERATE_CONFIG_DS_FIELDS")
HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BUCKET_MEGABYTES = 25
"""Gradients that DDP sends at once: many enough to travel while the rest is computed, large enough for the link."""
WATCHDOG_FIRST = 60
"""Seconds by which a collective outlasts the watchdog."""
DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Placement:
    """What a rank knows of where it computes."""

    accelerator: Accelerator
    backend: Sharding
    precision: Precision
    """Never `auto`."""
    launched: LaunchedRanks
    lent_variables: tuple[str, ...]
    """Of the environment: set for a group of one, and no longer true once it is left."""

    @property
    def ranks(self) -> int:
        """The world size."""
        return int(self.accelerator.num_processes)

    def leave(self) -> None:
        """End what the ranks shared, so that this process can train again by itself."""
        self.accelerator.end_training()
        for name in self.lent_variables:
            os.environ.pop(name, None)


def resolved_precision(asked: Precision, device: torch.device) -> Precision:
    """`asked`, or for `auto` the fastest that trains well on `device`: bf16, on older GPUs fp16, else fp32."""
    if asked != "auto":
        return asked
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def resolved_backend(asked: BackendName, launched: LaunchedRanks) -> Sharding:
    """The backend that setting and launcher ask for together; without either, whole copies on every rank.

    Raises:
        BadInput: they ask for different ones, or for one that does not fit the number of ranks.
    """
    if launched.backend is not None:
        if asked not in ("auto", launched.backend):
            raise BadInput(
                f"parallel.backend is {asked}, and the launcher's configuration asks for {launched.backend}: "
                "leave parallel.backend at auto, or launch with another of configs/accelerate"
            )
        return launched.backend
    if asked == "single" and launched.world_size > 1:
        raise BadInput(f"parallel.backend single with {launched.world_size} ranks would train as many models; use ddp")
    if asked == "auto" or asked == "single" or asked == "ddp":
        return "single" if launched.world_size == 1 else "ddp"
    return asked


def start_ranks(train: TrainSettings, parallel: ParallelSettings, run: Path) -> Placement:
    """Join the ranks of this run.

    Raises:
        BadInput: the launcher asked for ranks or a backend that did not come up or that the settings contradict.
    """
    launched = launched_ranks()
    chosen = resolved_backend(parallel.backend, launched)
    device_type: DeviceType = "cuda" if torch.cuda.is_available() else "cpu"
    if device_type == "cpu":
        # transformers imports DeepSpeed when it saves, which otherwise guesses the device with a warning.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        keep_freed_memory()
    else:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    require_whole_matrices(train, chosen)
    asked = launched.precision if train.precision == "auto" and launched.precision else train.precision
    precision = resolved_precision(asked, torch.device(device_type))
    stage = zero_stage(chosen)
    if parallel.offload and not stage:
        raise BadInput(
            f"parallel.offload: the backend is {chosen}, which keeps all on its device; choose parallel.backend zero1, "
            "zero2 or zero3, or leave offload out"
        )
    trackers = str(run / TRACKERS_FOLDER)
    lent_variables: tuple[str, ...] = ()
    if launched.world_size == 1 and (stage or chosen == "fsdp2"):
        lent_variables = _start_group_of_one(device_type)
    waits = collective_timeout(parallel.hang_seconds)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _start_group_of_this_life(device_type, waits)
    if stage:
        accelerator = _deepspeed_accelerator(
            train, stage, parallel.offload or launched.offload, precision, device_type, trackers, waits
        )
    else:
        # FSDP2 is PyTorch's own here: Accelerate's does not reach it on a CPU.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        accelerator = Accelerator(
            mixed_precision="no",
            cpu=device_type == "cpu",
            log_with=list(train.trackers),
            project_dir=trackers,
            # Gradients lie where they are sent from, so that none is copied twice a step.
            kwargs_handlers=[
                DistributedDataParallelKwargs(bucket_cap_mb=BUCKET_MEGABYTES, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=waits),
            ],
        )
    require_what_was_asked(accelerator, launched, bool(stage))
    return Placement(accelerator, chosen, precision, launched, lent_variables)


def collective_timeout(hang_seconds: int) -> timedelta:
    """How long a rank waits for the others in a collective: longer than the watchdog, whose stacks say more; where that
    never bites, for good. torch's own are 10 minutes on GPUs, in which no rank 0 writes a large checkpoint."""
    return timedelta(seconds=hang_seconds + WATCHDOG_FIRST) if hang_seconds else timedelta(days=365)


def _start_group_of_one(device_type: DeviceType) -> tuple[str, ...]:
    """A process group for a single rank, which sharding backends want even where there is nothing to share; returns the
    variables of the environment that it set."""
    if not distributed.is_initialized():
        backend = "nccl" if device_type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    lent = {
        name: value
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items()
        if name not in os.environ
    }
    os.environ |= lent
    return tuple(lent)


def _start_group_of_this_life(device_type: DeviceType, waits: timedelta) -> None:
    """A process group for ranks that torchrun started again. Its store outlives them, and what the ranks before wrote
    into it - their addresses - would be taken for that of these: gloo then waits for the dead."""
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if life == "0" or distributed.is_initialized():
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = PrefixStore(f"life-{life}", TCPStore(*place, ranks, is_master=False))
    distributed.init_process_group(
        "nccl" if device_type == "cuda" else "gloo", store=store, rank=rank, world_size=ranks, timeout=waits
    )


def _deepspeed_accelerator(
    train: TrainSettings,
    stage: int,
    offload: bool,
    precision: Precision,
    device_type: DeviceType,
    trackers: str,
    waits: timedelta,
) -> Accelerator:
    from deepspeed.accelerator import get_accelerator

    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise BadInput(
            "train.precision fp16: DeepSpeed has no fp16 on this device; use fp32 or bf16, or another backend"
        )
    _quiet_deepspeed(device_type)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    # What the launcher's file said of these is in our own configuration, which alone must count.
    for name in [name for name in os.environ if name.startswith(LAUNCHER_PREFIXES)]:
        del os.environ[name]
    mixed = "no" if precision == "fp32" else precision
    os.environ["ACCELERATE_MIXED_PRECISION"] = mixed
    return Accelerator(
        mixed_precision=mixed,
        deepspeed_plugin=DeepSpeedPlugin(
            hf_ds_config=zero_config(train, stage, offload, precision, device_type == "cuda")
        ),
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo" if device_type == "cpu" else "nccl", timeout=waits)],
        log_with=list(train.trackers),
        project_dir=trackers,
    )


def _quiet_deepspeed(device_type: DeviceType) -> None:
    import logging

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # ZeRO 3 gathers by functions that newer torch warns of, several times a step.
    warnings.filterwarnings("ignore", r"`?torch\.distributed\.\w+`? is deprecated", FutureWarning)
    if device_type == "cpu":
        # Compiling its shared-memory collectives takes half a minute and changes no result.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def require_what_was_asked(accelerator: Accelerator, launched: LaunchedRanks, deepspeed: bool) -> None:
    """See that the ranks found each other, under DeepSpeed if that was asked for.

    Raises:
        BadInput: they did not.
    """
    came_up = accelerator.distributed_type
    right_kind = (came_up == DistributedType.DEEPSPEED) == deepspeed
    if accelerator.num_processes != launched.world_size or not right_kind:
        raise BadInput(
            f"the launcher started {launched.world_size} ranks, but they came up as {accelerator.num_processes} "
            f"({came_up.value}) and would train separate models; start them with "
            "`accelerate launch --config_file configs/accelerate/cpu.yaml -m train ...` (ddp.yaml on GPUs)"
        )
