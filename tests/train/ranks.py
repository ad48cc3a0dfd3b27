"""Functions and runs on gloo ranks, each rank a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.multiprocessing
from torch import distributed

from tests.launching import ROOT, environment
from tests.time_limits import seconds


def on_two_ranks(function: Callable[[int, Path], None], folder: Path) -> None:
    """Run `function(rank, folder)`, a module's own, on both; raises what either raised, or that they hang."""
    on_ranks(2, function, folder)


def on_ranks(ranks: int, function: Callable[[int, Path], None], folder: Path) -> None:
    """Run `function(rank, folder)`, a module's own, on all; raises what any raised, or that they hang."""
    # Forks of the server that `tests.launching` sets up, which has imported everything.
    context = torch.multiprocessing.start_processes(
        _joined, (ranks, function, folder), nprocs=ranks, join=False, start_method="forkserver"
    )
    limit = seconds(100)
    end = time.monotonic() + limit
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{ranks} ranks in {function.__name__} for more than {limit:.0f} s")


def run_many(ranks: int, lists: Sequence[Sequence[str]], folder: Path) -> None:
    """Run many `malmoi train` on the same ranks, in `folder`, all of which must succeed; see `many_runs.py`."""
    file = folder / f"lists-{ranks}.json"
    file.write_text(json.dumps(lists), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "tests" / "train" / "many_runs.py"), str(file)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(900),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-20000:]


def _joined(rank: int, ranks: int, function: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    # What Accelerate goes by.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    function(rank, folder)
    distributed.destroy_process_group()
