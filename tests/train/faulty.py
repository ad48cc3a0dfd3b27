"""`python tests/train/faulty.py FAULT RANK STEPS WORDS...`: `malmoi train` with one thing going wrong on one rank.

FAULT, at the micro-batches STEPS (`5` or `5-8`) that the rank computes after its start: `nan` and `spike` spoil the
loss, `stall` stops for good, `raise` raises, `die` ends the process by SIGKILL in its first life, `stop` asks it to
stop. `oom` finds memory for two samples only, in the search for a micro-batch; `grow` has fp16's loss scale grow after
STEPS good updates.
"""

import os
import signal
import sys
import time
from typing import Any

import torch

import train.loss_scale
import train.task
from launch.cli import main
from train.documents import Batch
from train.model import TrainedGPT2
from train.objective import batch_nats


def faulty_nats(fault: str, rank: int, first_step: int, last_step: int) -> None:
    updates = -1

    def nats(model: torch.nn.Module, batch: Batch, *rest: object) -> torch.Tensor:
        nonlocal updates
        result = batch_nats(model, batch, *rest)  # type: ignore[arg-type]
        updates += 1
        if os.environ.get("RANK", "0") == str(rank) and first_step <= updates + 1 <= last_step:
            if fault == "nan":
                return result * float("nan")
            if fault == "spike":
                return result * 1000.0
            if fault == "stall":
                time.sleep(3600)
            if fault == "die" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "stop":
                signal.raise_signal(signal.SIGTERM)
            if fault == "raise":
                raise RuntimeError("a fault on purpose")
        return result

    train.task.batch_nats = nats


def little_memory() -> None:
    plain = TrainedGPT2.forward

    def forward(model: TrainedGPT2, input_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if model.training and len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return plain(model, input_ids, *rest, **named)

    TrainedGPT2.forward = forward


def lift_deepspeeds_device_check() -> None:
    """DeepSpeed refuses fp16 on a CPU, where it is slow and computes all the same."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


if __name__ == "__main__":
    if "LIFT_DEEPSPEEDS_DEVICE_CHECK" in os.environ:
        lift_deepspeeds_device_check()
    fault, rank, steps, *words = sys.argv[1:]
    if fault == "oom":
        little_memory()
    elif fault == "grow":
        train.loss_scale.GROWTH_INTERVAL = int(steps)
    else:
        first, _, last = steps.partition("-")
        faulty_nats(fault, int(rank), int(first), int(last or first))
    sys.exit(main(["train", *words]))
