"""What the launcher - `accelerate launch`, torchrun or srun - put into the environment."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import BadInput
from configs.schema import Precision, Sharding, TrainSettings

UNSET = ("", "none", "auto", "1", "1.0")
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
MEETING_PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STAGES: dict[int, Sharding] = {1: "zero1", 2: "zero2", 3: "zero3"}


@dataclass(frozen=True)
class LaunchedRanks:
    """Ranks, and what `accelerate launch` was told beyond them."""

    world_size: int
    backend: Sharding | None
    """The sharding that was asked for, if any."""
    precision: Precision | None
    """The mixed precision that was asked for, if any."""
    accumulation: int | None
    clip_norm: float | None
    offload: bool

    def require_no_contradiction(self, train: TrainSettings, accumulation: int) -> None:
        """See that one number each decides accumulation, clipping and precision.

        Raises:
            BadInput: launcher and settings differ.
        """
        pairs: list[tuple[str, object, object, str]] = [
            ("accumulation steps", self.accumulation, accumulation, "train.global_batch and train.micro_batch"),
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
        BadInput: tasks were started without ranks or a place to meet, or for a sharding that Malmoi does not do.
    """
    _require_ranks_of_tasks(environment)

    world_size = int(environment.get("WORLD_SIZE", "1"))
    missing = [name for name in MEETING_PLACE if name not in environment]
    if world_size > 1 and missing:
        raise BadInput(
            f"WORLD_SIZE says {world_size} ranks, but {', '.join(missing)} are not set, so they cannot meet; start "
            "them with `accelerate launch`, torchrun or `malmoi slurm submit`"
        )

    def on(name: str) -> bool:
        return environment.get(name, "false").lower() == "true"

    backend: Sharding | None = None
    config: dict[str, Any] = {}
    if on("ACCELERATE_USE_DEEPSPEED"):
        config = _deepspeed_file(environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"))
        stage = config.get("zero_optimization", {}).get(
            "stage", environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        )
        if int(stage) not in STAGES:
            raise BadInput(f"ZeRO stage {stage}: Malmoi runs stages 1, 2 and 3; for whole copies launch with ddp.yaml")
        backend = STAGES[int(stage)]
    elif on("ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION", "1") != "2":
            raise BadInput("FSDP version 1: set `fsdp_version: 2` in the launcher's fsdp_config, as in fsdp2.yaml")
        backend = "fsdp2"
    elif on("ACCELERATE_USE_MEGATRON_LM"):
        raise BadInput("Megatron-LM: Malmoi runs DDP, DeepSpeed ZeRO and FSDP2; launch with one of configs/accelerate")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    zero = config.get("zero_optimization", {})
    devices = [
        environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        zero.get("offload_optimizer", {}).get("device", "none"),
    ]
    return LaunchedRanks(
        world_size=world_size,
        backend=backend,
        precision=precision if precision in ("bf16", "fp16") else None,  # type: ignore[arg-type]
        accumulation=_number(
            config.get("gradient_accumulation_steps", environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")), int
        ),
        clip_norm=_number(config.get("gradient_clipping", environment.get("ACCELERATE_GRADIENT_CLIPPING")), float),
        offload="cpu" in devices,
    )


def _number(value: object, kind: type) -> Any:
    text = "" if value is None else str(value).lower()
    return None if text in UNSET else kind(text)


def _deepspeed_file(name: str) -> dict[str, Any]:
    if name == "none":
        return {}
    try:
        content: dict[str, Any] = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{name}: cannot be read as DeepSpeed's JSON ({error})") from error
    return content


def _require_ranks_of_tasks(environment: Mapping[str, str]) -> None:
    for name in TASK_COUNTS:
        tasks = int(environment.get(name, "1"))
        if tasks > 1 and "RANK" not in environment:
            raise BadInput(
                f"{tasks} tasks were started ({name}) without RANK and WORLD_SIZE and would train as many models; "
                "start them with `malmoi slurm submit`, or let each task run torchrun or `accelerate launch`"
            )
