"""Start a run's ranks: choose device, precision and backend, and refuse what came up otherwise than requested."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch.distributed import DistError

from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import BackendName, ParallelSettings, TrainSettings
from malmoi.errors import RunFailed, UserError, first_line
from malmoi.registry import registry_entry
from malmoi.train.backends import BACKENDS
from malmoi.train.backends.base import AcceleratorInputs, BackendSpec
from malmoi.train.distributed.dist_env import DistEnv, resolved_precision
from malmoi.train.distributed.flight_recorder import record_collectives
from malmoi.train.distributed.launch_env import LaunchEnv, read_launch_env
from malmoi.train.distributed.malloc import keep_freed_memory
from malmoi.train.distributed.parallel_dims import ParallelDims
from malmoi.train.distributed.process_groups import (
    DeviceType,
    collective_timeout,
    start_group_after_restart,
    start_group_of_one,
)
from malmoi.train.distributed.rendezvous import met_ranks
from malmoi.train.optim import OPTIMIZERS

BUCKET_MEGABYTES = 25
"""Gradients that DDP sends at once: small enough to overlap with the backward pass, large enough for the link."""


def resolved_backend(requested: BackendName, launch: LaunchEnv) -> BackendName:
    """Return the backend that setting and launcher ask for together; without either, `single` or `ddp`.

    Raises:
        UserError: they ask for different ones, or for one that does not fit the number of ranks.
    """
    if launch.backend is not None:
        if requested not in ("auto", launch.backend):
            raise UserError(
                f"parallel.backend is {requested}, and the launcher's configuration asks for {launch.backend}: "
                "leave parallel.backend at auto, or launch with another of configs/accelerate"
            )
        return launch.backend
    if requested == "single" and launch.num_ranks > 1:
        raise UserError(f"parallel.backend single with {launch.num_ranks} ranks would train as many models; use ddp")
    if requested in ("auto", "single", "ddp"):
        return "single" if launch.num_ranks == 1 else "ddp"
    return requested


def require_optimizer_fits(optim: OptimSettings, backend: BackendName) -> None:
    """Check that the optimizer can step what the backend gives it.

    Raises:
        UserError: it needs full matrices, and the backend splits them; or one of the two is unknown.
    """
    optimizer = registry_entry(OPTIMIZERS, "optim.name", optim.name)
    if backend == "auto":
        return
    splits_matrices = registry_entry(BACKENDS, "parallel.backend", backend).splits_matrices
    if optimizer.needs_full_matrices and optimizer.lay_out is None and splits_matrices:
        raise UserError(
            f"optim.name {optim.name} needs full matrices, which {backend} splits into flat pieces; use adamw or muon, "
            "or the backend ddp or fsdp2"
        )


def replicated_dims(parallel: ParallelSettings, backend: BackendName, launch: LaunchEnv) -> ParallelDims:
    """Return the ranks' dimensions, with the copies of the model that the settings ask for.

    Raises:
        UserError: the backend keeps no copies of shards, or the copies do not divide the ranks.
    """
    able = [name for name, entry in BACKENDS.items() if entry.can_replicate]
    if parallel.replicas > 1 and backend != "auto" and backend not in able:
        raise UserError(
            f"parallel.replicas {parallel.replicas}: the backend {backend} does not shard within groups of ranks; "
            f"choose parallel.backend {', '.join(able)}, or leave replicas at 1"
        )
    return launch.dims.with_replicas(parallel.replicas)


def start_ranks(train: TrainSettings, optim: OptimSettings, parallel: ParallelSettings) -> DistEnv:
    """Join the ranks of this run.

    Raises:
        UserError: the launcher asked for ranks or a backend that did not come up or that the settings contradict.
        RunFailed: a rank did not come, or ended meanwhile.
    """
    launch = read_launch_env()
    name = resolved_backend(parallel.backend, launch)
    spec = registry_entry(BACKENDS, "parallel.backend", name)
    require_optimizer_fits(optim, name)
    dims = replicated_dims(parallel, name, launch)
    device_type = _prepare_device()
    requested = launch.precision if train.precision == "auto" and launch.precision else train.precision
    inputs = AcceleratorInputs(
        device_type=device_type,
        precision=resolved_precision(requested, torch.device(device_type)),
        max_grad_norm=optim.max_grad_norm,
        offload=parallel.offload or launch.offload,
        timeout=collective_timeout(parallel.watchdog_timeout),
    )
    if parallel.offload and not spec.can_offload:
        able = ", ".join(each for each, entry in BACKENDS.items() if entry.can_offload)
        raise UserError(
            f"parallel.offload: the backend is {name}, which keeps everything on its device; choose parallel.backend "
            f"{able}, or leave offload out"
        )
    lent = start_group_of_one(device_type) if launch.num_ranks == 1 and spec.needs_process_group else ()
    record_collectives()
    # A rank whose data is on a disk of its own may come much later.
    with met_ranks(launch, "prepared", inputs.timeout.total_seconds()):
        try:
            start_group_after_restart(device_type, launch, inputs.timeout)
            accelerator = (spec.new_accelerator or _plain_accelerator)(inputs)
        except DistError as error:
            raise RunFailed(
                f"rank {launch.rank}: the process group did not start ({first_line(error)}); a rank has ended: see "
                "what it says itself, and start all again"
            ) from error
    require_requested_ranks(accelerator, launch, spec)
    return DistEnv(accelerator, name, inputs.precision, launch, dims, inputs.offload, lent)


def _prepare_device() -> DeviceType:
    """Set torch's global options for the device of this machine, and return its type."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        return "cuda"
    # transformers imports DeepSpeed when it saves, which otherwise guesses the device with a warning.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    keep_freed_memory()
    return "cpu"


def _plain_accelerator(inputs: AcceleratorInputs) -> Accelerator:
    # FSDP2 is PyTorch's own here: Accelerate's does not reach it on a CPU.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    return Accelerator(
        mixed_precision="no",
        cpu=inputs.device_type == "cpu",
        # Gradients are views of the buckets that are sent, so that none is copied twice a step.
        kwargs_handlers=[
            DistributedDataParallelKwargs(bucket_cap_mb=BUCKET_MEGABYTES, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=inputs.timeout),
        ],
    )


def require_requested_ranks(accelerator: Accelerator, launch: LaunchEnv, spec: BackendSpec) -> None:
    """Check that the ranks found each other, under DeepSpeed if that was requested.

    Raises:
        UserError: they did not, and would train as many models.
    """
    came_up = accelerator.distributed_type
    is_right_kind = (came_up == DistributedType.DEEPSPEED) == spec.uses_deepspeed
    if accelerator.num_processes != launch.num_ranks or not is_right_kind:
        raise UserError(
            f"the launcher started {launch.num_ranks} ranks, but they came up as {accelerator.num_processes} "
            f"({came_up.value}) and would train separate models; start them with "
            "`accelerate launch --config_file configs/accelerate/cpu.yaml -m malmoi.train ...` (ddp.yaml on GPUs)"
        )
