"""What the launcher - `accelerate launch`, torchrun or srun - put into the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from configs.errors import BadInput
from configs.schema import BackendName, Precision, Sharding, TrainSettings
from train.deepspeed_file import DeepSpeedFile, read_deepspeed_file
from train.size import accumulation_steps
from train.zero_config import require_whole_matrices

Number = TypeVar("Number", int, float)
UNSET = ("", "none", "auto", "1", "1.0")
"""What Accelerate's variables say where nobody asked: 1 is what it writes by itself."""
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
MEETING_PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STAGES: dict[str, Sharding] = {"1": "zero1", "2": "zero2", "3": "zero3"}


@dataclass(frozen=True)
class LaunchedRanks:
    """Ranks, and what `accelerate launch` was told beyond them; None: nothing."""

    world_size: int
    backend: Sharding | None
    """The sharding that was asked for, if any."""
    precision: Precision | None
    """The mixed precision that was asked for, if any."""
    accumulation: int | None
    clip_norm: float | None
    offload: bool
    global_batch: int | None = None
    """Samples an update, over all ranks."""
    micro_batch: int | None = None
    """Samples that a rank computes at once."""

    def require_no_contradiction(self, train: TrainSettings, accumulation: int) -> None:
        """See that one number each decides batch, accumulation, clipping and precision.

        Raises:
            BadInput: launcher and settings differ.
        """
        pairs: list[tuple[str, object, object, str]] = [
            ("accumulation steps", self.accumulation, accumulation, "train.global_batch and train.micro_batch"),
            ("samples an update", self.global_batch, train.global_batch, "train.global_batch"),
            (
                "samples of a rank at once",
                self.micro_batch,
                train.global_batch // (accumulation * self.world_size),
                "train.micro_batch",
            ),
            ("norms to clip at", self.clip_norm, train.clip_norm, "train.clip_norm"),
        ]
        if train.precision != "auto":
            pairs.append(("precisions", self.precision, train.precision, "train.precision"))
        for what, theirs, ours, setting in pairs:
            if theirs is not None and theirs != ours:
                raise BadInput(
                    f"{what} are {theirs} in the launcher's configuration and {ours} by {setting}: "
                    "take the line out of the configuration, or make them equal"
                )


def launched_ranks(environment: Mapping[str, str] = os.environ) -> LaunchedRanks:
    """Read the launcher's environment variables.

    Raises:
        BadInput: tasks were started without ranks or a place to meet, or for a sharding, an offloading or a precision
            that Malmoi does not do; or DeepSpeed's file is not usable.
    """
    _require_ranks_of_tasks(environment)

    world_size = int(environment.get("WORLD_SIZE", "1"))
    missing = [name for name in MEETING_PLACE if name not in environment]
    if world_size > 1 and missing:
        raise BadInput(
            f"WORLD_SIZE says {world_size} ranks, but not {', '.join(missing)}, so they cannot meet; start "
            "them with `accelerate launch`, torchrun or `malmoi slurm submit`"
        )

    def on(name: str) -> bool:
        return environment.get(name, "false").lower() == "true"

    backend: Sharding | None = None
    file = DeepSpeedFile()
    if on("ACCELERATE_USE_DEEPSPEED"):
        name = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        file = DeepSpeedFile() if name == "none" else read_deepspeed_file(Path(name))
        stage = file.stage or environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in STAGES:
            raise BadInput(f"ZeRO stage {stage}: Malmoi runs stages 1, 2 and 3; for whole copies launch with ddp.yaml")
        backend = STAGES[stage]
    elif on("ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION", "1") != "2":
            raise BadInput("FSDP version 1: set `fsdp_version: 2` in the launcher's fsdp_config, as in fsdp2.yaml")
        backend = "fsdp2"
    elif on("ACCELERATE_USE_MEGATRON_LM"):
        raise BadInput("Megatron-LM: Malmoi runs DDP, DeepSpeed ZeRO and FSDP2; launch with one of configs/accelerate")

    accumulation = _number(environment, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", int)
    clip_norm = _number(environment, "ACCELERATE_GRADIENT_CLIPPING", float)
    return LaunchedRanks(
        world_size=world_size,
        backend=backend,
        precision=file.precision or _precision(environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()),
        accumulation=accumulation if file.accumulation is None else file.accumulation,
        clip_norm=clip_norm if file.clip_norm is None else file.clip_norm,
        offload=_offload(
            file.optimizer_device or environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
            file.parameter_device or environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        ),
        global_batch=file.global_batch,
        micro_batch=file.micro_batch,
    )


def check_fits_launch(train: TrainSettings, backend: BackendName, launched: LaunchedRanks) -> None:
    """See that batch and optimiser go with the ranks, which can be told before text is prepared for hours.

    Raises:
        BadInput: they do not.
    """
    if isinstance(train.micro_batch, int):
        accumulation_steps(train.global_batch, train.micro_batch, launched.world_size)
    require_whole_matrices(train, launched.backend or backend)


def _number(environment: Mapping[str, str], name: str, kind: type[Number]) -> Number | None:
    text = environment.get(name, "").lower()
    if text in UNSET:
        return None
    try:
        return kind(text)
    except ValueError:
        raise BadInput(f"{name} {text}: no number; mend the launcher's configuration") from None


def _precision(name: str) -> Precision | None:
    if name not in ("no", "bf16", "fp16"):
        raise BadInput(f"mixed_precision {name}: Malmoi computes in fp32, bf16 or fp16; write no, bf16 or fp16")
    return None if name == "no" else name  # type: ignore[return-value]


def _offload(optimizer: str, parameters: str) -> bool:
    """Whether the optimiser's state, and in stage 3 the weights, go to the host's memory."""
    for name, device in (("offload_optimizer", optimizer), ("offload_param", parameters)):
        if device not in ("none", "cpu"):
            raise BadInput(f"{name} to {device}: Malmoi offloads to the host's memory alone; write cpu or none")
    if parameters == "cpu" and optimizer == "none":
        raise BadInput(
            "offload_param without offload_optimizer: Malmoi offloads the optimiser's state first, and in stage 3 the "
            "weights with it; write cpu for both, or none"
        )
    return optimizer == "cpu"


def _require_ranks_of_tasks(environment: Mapping[str, str]) -> None:
    for name in TASK_COUNTS:
        tasks = int(environment.get(name, "1"))
        if tasks > 1 and "RANK" not in environment:
            raise BadInput(
                f"{tasks} tasks were started ({name}) without RANK and WORLD_SIZE and would train as many models; "
                "start them with `malmoi slurm submit`, or let each task run torchrun or `accelerate launch`"
            )
