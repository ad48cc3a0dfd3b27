"""Functions run on two gloo ranks, each a process of its own."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing
from torch import distributed

MOST_SECONDS = 100


def on_two_ranks(function: Callable[[int, Path], None], folder: Path) -> None:
    """Run `function(rank, folder)`, a module's own, on both; raises what either raised, or that they hang."""
    context = torch.multiprocessing.spawn(_joined, (function, folder), nprocs=2, join=False)
    deadline = time.monotonic() + MOST_SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"two ranks in {function.__name__} for more than {MOST_SECONDS} s")


def _joined(rank: int, function: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    # What Accelerate goes by.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    function(rank, folder)
    distributed.destroy_process_group()
