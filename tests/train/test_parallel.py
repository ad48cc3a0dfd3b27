"""Ranks wait for each other as long as the watchdog lets them, and not as long as torch does by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import environment
from train.parallel import WATCHDOG_FIRST

PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import distributed
from configs.schema import ParallelSettings, TrainSettings
from train.parallel import start_ranks

backend, seconds, folder = sys.argv[1:]
train = TrainSettings(precision="fp32", trackers=())
start_ranks(train, ParallelSettings(backend=backend, hang_seconds=int(seconds)), Path(folder))
group = distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
(Path(folder) / f"rank-{distributed.get_rank()}").write_text(str(int(group.options._timeout.total_seconds())))
distributed.barrier()
"""


@pytest.mark.parametrize(
    ("backend", "hang_seconds", "waits"),
    [("ddp", 7200, 7200 + WATCHDOG_FIRST), ("zero1", 7200, 7200 + WATCHDOG_FIRST), ("ddp", 0, 365 * 24 * 3600)],
)
def test_a_collective_outlasts_the_watchdog(tmp_path: Path, backend: str, hang_seconds: int, waits: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    done = subprocess.run(
        [*launch, "--rdzv_endpoint", "127.0.0.1:0", str(program), backend, str(hang_seconds), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == [str(waits)] * 2
