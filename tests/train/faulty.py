"""`python tests/train/faulty.py FAULT RANK STEPS WORDS...`: `malmoi train` with one thing going wrong on one rank.

FAULT, at the micro-batches STEPS (`5` or `5-8`) that the rank computes after its start: `nan` and `spike` spoil the
loss, `stall` hangs, `raise` raises, `die` ends the process by SIGKILL unless torchrun has restarted it, `stop` asks it
to stop. `oom` finds memory for two samples only, in the search for a micro-batch; `grow` has fp16's loss scale grow
after STEPS good steps.
"""

import os
import signal
import sys
import time
from typing import Any

import torch

import malmoi.train.backends.loss_scale
import malmoi.train.tasks.language_modeling
from malmoi.launch.cli import main
from malmoi.train.data.document_mask import Batch
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.tasks.language_modeling import batch_loss_sum


def spoil_loss(fault: str, rank: int, first_step: int, last_step: int) -> None:
    """Have `rank` do what `fault` says in its micro-batches `first_step` to `last_step`, from 1."""
    computed = 0

    def loss_sum(model: torch.nn.Module, batch: Batch, *rest: object) -> torch.Tensor:
        nonlocal computed
        result = batch_loss_sum(model, batch, *rest)  # type: ignore[arg-type]
        computed += 1
        if os.environ.get("RANK", "0") == str(rank) and first_step <= computed <= last_step:
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

    malmoi.train.tasks.language_modeling.batch_loss_sum = loss_sum


def limit_memory() -> None:
    """Have the model run out of memory with more than two samples."""
    plain = TrainingGPT2.forward

    def forward(model: TrainingGPT2, input_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if model.training and len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return plain(model, input_ids, *rest, **named)

    TrainingGPT2.forward = forward


def lift_deepspeed_device_check() -> None:
    """DeepSpeed refuses fp16 on a CPU, where it is slow and computes all the same."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


if __name__ == "__main__":
    if "LIFT_DEEPSPEED_DEVICE_CHECK" in os.environ:
        lift_deepspeed_device_check()
    fault, rank, steps, *words = sys.argv[1:]
    if fault == "oom":
        limit_memory()
    elif fault == "grow":
        malmoi.train.backends.loss_scale.GROWTH_INTERVAL = int(steps)
    else:
        first, _, last = steps.partition("-")
        spoil_loss(fault, int(rank), int(first), int(last or first))
    sys.exit(main(["train", *words]))
