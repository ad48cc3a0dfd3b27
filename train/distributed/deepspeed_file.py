"""The settings of a run in a launcher's DeepSpeed file: https://www.deepspeed.ai/docs/config-json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malmoi.configs.train import Precision
from malmoi.errors import UserError

PRECISION_OF_SECTION: dict[str, Precision] = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16"}
AUTO = (None, "auto")


@dataclass(frozen=True)
class DeepSpeedFile:
    """None where the file says nothing or auto: Accelerate then fills in its own."""

    stage: str | None = None
    precision: Precision | None = None
    accumulation: int | None = None
    max_grad_norm: float | None = None
    global_batch_size: int | None = None
    micro_batch_size: int | None = None
    optimizer_device: str | None = None
    """Where the optimizer's state goes."""
    parameter_device: str | None = None
    """Where the weights go."""


def read_deepspeed_file(file: Path) -> DeepSpeedFile:
    """Read the settings of `file`.

    Raises:
        UserError: it cannot be read, is no JSON object, or a value in it is none that DeepSpeed knows.
    """
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as DeepSpeed's JSON ({error}); fix it, or name another") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: no JSON object; write DeepSpeed's settings by name")
    zero = _section(file, config, "zero_optimization")
    return DeepSpeedFile(
        # DeepSpeed's own default is no ZeRO; its stage has no auto.
        stage=str(zero.get("stage", 0)),
        precision=_precision(file, config),
        accumulation=_count(file, config, "gradient_accumulation_steps"),
        max_grad_norm=_number(file, config, "gradient_clipping"),
        global_batch_size=_count(file, config, "train_batch_size"),
        micro_batch_size=_count(file, config, "train_micro_batch_size_per_gpu"),
        optimizer_device=_device(_section(file, zero, "offload_optimizer")),
        parameter_device=_device(_section(file, zero, "offload_param")),
    )


def _section(file: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UserError(f"{file}: {name} {section}: no JSON object; write DeepSpeed's settings by name")
    return section


def _precision(file: Path, config: dict[str, Any]) -> Precision | None:
    found: set[Precision] = set()
    for name, precision in PRECISION_OF_SECTION.items():
        enabled = _section(file, config, name).get("enabled", False)
        if enabled not in (True, False, "auto"):
            raise UserError(f"{file}: {name}.enabled {enabled}: write true or false")
        if enabled is True:
            found.add(precision)
    if len(found) > 1:
        raise UserError(f"{file}: bf16 and fp16 are both enabled; choose one")
    return found.pop() if found else None


def _number(file: Path, config: dict[str, Any], name: str) -> float | None:
    value = config.get(name)
    if value in AUTO:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{file}: {name} {value}: write a number")
    return float(value)


def _count(file: Path, config: dict[str, Any], name: str) -> int | None:
    number = _number(file, config, name)
    if number is not None and not number.is_integer():
        raise UserError(f"{file}: {name} {number}: write an integer")
    return None if number is None else int(number)


def _device(section: dict[str, Any]) -> str | None:
    device = section.get("device", "none")
    return None if device in AUTO else str(device)
