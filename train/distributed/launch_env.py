"""What the launcher (`accelerate launch`, torchrun or srun) put into the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import BackendName, Precision, TrainSettings
from malmoi.errors import UserError
from malmoi.ranks import launched_ranks, whole_number
from malmoi.train.distributed.deepspeed_file import DeepSpeedFile, read_deepspeed_file
from malmoi.train.distributed.parallel_dims import ParallelDims

Number = TypeVar("Number", int, float)
UNSET = ("", "none", "auto", "1", "1.0")
"""Values of Accelerate's variables where nobody set them: 1 is what it writes by itself."""
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STAGES: dict[str, BackendName] = {"1": "zero1", "2": "zero2", "3": "zero3"}


@dataclass(frozen=True)
class LaunchEnv:
    """The ranks, and what else the launcher's configuration says; None: nothing."""

    rank: int
    num_ranks: int
    backend: BackendName | None
    precision: Precision | None
    accumulation: int | None
    max_grad_norm: float | None
    offload: bool
    global_batch_size: int | None = None
    micro_batch_size: int | None = None

    @property
    def dims(self) -> ParallelDims:
        """Every rank is a data-parallel rank."""
        return ParallelDims(self.rank, self.num_ranks)

    def require_agreement(
        self, train: TrainSettings, optim: OptimSettings, micro_batch_size: int, accumulation: int
    ) -> None:
        """Check that the launcher's configuration contradicts no setting of the run.

        Raises:
            UserError: it does.
        """
        pairs: list[tuple[str, object, object, str]] = [
            (
                "accumulation steps",
                self.accumulation,
                accumulation,
                "train.global_batch_size and train.micro_batch_size",
            ),
            ("global batch size", self.global_batch_size, train.global_batch_size, "train.global_batch_size"),
            ("micro-batch size", self.micro_batch_size, micro_batch_size, "train.micro_batch_size"),
            ("gradient clipping", self.max_grad_norm, optim.max_grad_norm, "optim.max_grad_norm"),
        ]
        if train.precision != "auto":
            pairs.append(("precision", self.precision, train.precision, "train.precision"))
        for what, theirs, ours, setting in pairs:
            if theirs is not None and theirs != ours:
                raise UserError(
                    f"{what} is {theirs} in the launcher's configuration and {ours} by {setting}: take the line out of "
                    "the configuration, or make them equal"
                )


def read_launch_env(environment: Mapping[str, str] = os.environ) -> LaunchEnv:
    """Read the launcher's environment variables.

    Raises:
        UserError: processes were started without ranks or a rendezvous address, or a variable of theirs holds no
            number or was left by another launch; or it asks for a kind of sharding, offloading or precision that
            Malmoi does not have; or DeepSpeed's file is not usable.
    """
    _require_ranks_of_tasks(environment)
    _require_a_launcher(environment)
    ranks = launched_ranks(environment)
    num_ranks = ranks.count
    whole_number(environment, "LOCAL_RANK", 0)
    whole_number(environment, "MASTER_PORT", 0)
    missing = [name for name in RENDEZVOUS if name not in environment]
    if num_ranks > 1 and missing:
        raise UserError(
            f"WORLD_SIZE says {num_ranks} ranks that cannot meet without {', '.join(missing)}; start them with "
            "`accelerate launch`, torchrun or `malmoi slurm submit`"
        )

    def is_on(name: str) -> bool:
        return environment.get(name, "false").lower() == "true"

    backend: BackendName | None = None
    file = DeepSpeedFile()
    if is_on("ACCELERATE_USE_DEEPSPEED"):
        name = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        file = DeepSpeedFile() if name == "none" else read_deepspeed_file(Path(name))
        stage = file.stage or environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in STAGES:
            raise UserError(f"ZeRO stage {stage}: Malmoi has stages 1, 2 and 3; without ZeRO, launch with ddp.yaml")
        backend = STAGES[stage]
    elif is_on("ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION", "1") != "2":
            raise UserError("FSDP version 1: set `fsdp_version: 2` in the launcher's fsdp_config, as in fsdp2.yaml")
        backend = "fsdp2"
    elif is_on("ACCELERATE_USE_MEGATRON_LM"):
        raise UserError("Megatron-LM: Malmoi has DDP, DeepSpeed ZeRO and FSDP2; launch with one of configs/accelerate")

    accumulation = _number(environment, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", int)
    max_grad_norm = _number(environment, "ACCELERATE_GRADIENT_CLIPPING", float)
    return LaunchEnv(
        rank=ranks.rank,
        num_ranks=num_ranks,
        backend=backend,
        precision=file.precision or _precision(environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()),
        accumulation=accumulation if file.accumulation is None else file.accumulation,
        max_grad_norm=max_grad_norm if file.max_grad_norm is None else file.max_grad_norm,
        offload=(backend == "fsdp2" and is_on("FSDP_OFFLOAD_PARAMS"))
        or _offload(
            file.optimizer_device or environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
            file.parameter_device or environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        ),
        global_batch_size=file.global_batch_size,
        micro_batch_size=file.micro_batch_size,
    )


def _number(environment: Mapping[str, str], name: str, kind: type[Number]) -> Number | None:
    text = environment.get(name, "").lower()
    if text in UNSET:
        return None
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} {text}: not a number; fix the launcher's configuration") from None


def _precision(name: str) -> Precision | None:
    if name not in ("no", "bf16", "fp16"):
        raise UserError(f"mixed_precision {name}: Malmoi computes in fp32, bf16 or fp16; write no, bf16 or fp16")
    return None if name == "no" else name  # type: ignore[return-value]


def _offload(optimizer: str, parameters: str) -> bool:
    """Whether the optimizer's state, and in stage 3 the weights, go to host memory."""
    for name, device in (("offload_optimizer", optimizer), ("offload_param", parameters)):
        if device not in ("none", "cpu"):
            raise UserError(f"{name} to {device}: Malmoi offloads to host memory only; write cpu or none")
    if parameters == "cpu" and optimizer == "none":
        raise UserError(
            "offload_param without offload_optimizer: Malmoi offloads the optimizer's state first, and in stage 3 the "
            "weights with it; write cpu for both, or none"
        )
    return optimizer == "cpu"


def _require_ranks_of_tasks(environment: Mapping[str, str]) -> None:
    for name in TASK_COUNTS:
        tasks = whole_number(environment, name, 1)
        if tasks > 1 and "RANK" not in environment:
            raise UserError(
                f"{tasks} tasks were started ({name}) without RANK and WORLD_SIZE and would train as many models; "
                "start them with `malmoi slurm submit`, or let each task run torchrun or `accelerate launch`"
            )


def _require_a_launcher(environment: Mapping[str, str]) -> None:
    """Check that what looks like a launch is one: ranks that do not know each other would each train the model."""
    stale = [name for name in ("RANK", "LOCAL_RANK") if name in environment]
    if stale and "WORLD_SIZE" not in environment:
        found = " and ".join(f"{name}={environment[name]}" for name in stale)
        raise UserError(
            f"{found} without WORLD_SIZE: a launcher sets all of "
            f"them; `unset {' '.join(stale)}` to train in one process, or start the ranks with `accelerate launch`"
        )
    if "WORLD_SIZE" not in environment and {"MASTER_ADDR", "ACCELERATE_DYNAMO_BACKEND"} <= environment.keys():
        raise UserError(
            "`accelerate launch` was to start several processes and started one: without a GPU it needs "
            "`--config_file configs/accelerate/cpu.yaml` besides --num_processes; where one is meant, leave "
            "--num_processes out and `unset MASTER_ADDR`"
        )
