"""Ranks start with the backend that setting and launcher ask for together, or stop with the reason."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from malmoi.configs.optim import OptimSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import BackendName, ParallelSettings, TrainSettings
from malmoi.errors import UserError
from malmoi.train.backends import BACKENDS
from malmoi.train.backends.base import AcceleratorInputs
from malmoi.train.backends.start import require_requested_ranks, resolved_backend, start_ranks
from malmoi.train.backends.zero import zero_config
from malmoi.train.distributed.launch_env import LaunchEnv
from malmoi.train.distributed.process_groups import WATCHDOG_FIRST, collective_timeout
from malmoi.train.dry_run import dry_run
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.pretrain import pretrain
from tests.launching import environment, with_settings
from tests.time_limits import seconds

ONE_RANK = LaunchEnv(0, 1, None, None, None, None, False)
TWO_RANKS = LaunchEnv(0, 2, None, None, None, None, False)


@pytest.mark.parametrize(
    ("requested", "launch", "chosen"),
    [
        ("auto", ONE_RANK, "single"),
        ("auto", TWO_RANKS, "ddp"),
        ("ddp", ONE_RANK, "single"),
        ("zero2", ONE_RANK, "zero2"),
        ("auto", LaunchEnv(0, 2, "fsdp2", None, None, None, False), "fsdp2"),
    ],
)
def test_setting_and_launcher_choose_together(requested: BackendName, launch: LaunchEnv, chosen: str) -> None:
    assert resolved_backend(requested, launch) == chosen


def test_a_setting_that_contradicts_the_launcher_is_refused() -> None:
    with pytest.raises(UserError, match=r"parallel\.backend is zero3, and the launcher's configuration asks for zero2"):
        resolved_backend("zero3", LaunchEnv(0, 2, "zero2", None, None, None, False))
    with pytest.raises(UserError, match="single with 2 ranks would train as many models; use ddp"):
        resolved_backend("single", TWO_RANKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train__global_batch_size": 8, "train__micro_batch_size": 3},
            "8 is no multiple of train.micro_batch_size 3 x 1 rank",
        ),
        (
            {"optim__name": "whole", "parallel__backend": "zero1"},
            "whole needs full matrices, which zero1 splits into flat pieces; use adamw or muon, or the backend ddp",
        ),
        (
            {"parallel__backend": "fsdp2", "parallel__replicas": 2},
            "parallel.replicas 2 does not divide 1 rank; set it to the number of nodes, or leave it at 1",
        ),
        (
            {"parallel__replicas": 2},
            "parallel.replicas 2: the backend single does not shard within groups of ranks; choose parallel.backend "
            "fsdp2, or leave replicas at 1",
        ),
    ],
)
@pytest.mark.parametrize("begin", [pretrain, dry_run])
def test_what_does_not_fit_the_ranks_is_refused_before_text_is_prepared(
    begin: Callable[[RunSettings], int],
    change: dict[str, Any],
    message: str,
    tiny_settings: RunSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OPTIMIZERS, "whole", replace(OPTIMIZERS["muon"], lay_out=None))
    with pytest.raises(UserError, match=message):
        begin(with_settings(tiny_settings, run=str(tmp_path / "run"), **change))
    assert not (tmp_path / "run").exists()


def test_fp16_is_refused_where_deepspeed_has_none() -> None:
    """On a device that DeepSpeed says has no fp16, whatever this machine's has."""
    script = (
        "from malmoi.errors import UserError\n"
        "from deepspeed.accelerator import get_accelerator\n"
        "get_accelerator().is_fp16_supported = lambda: False\n"
        "from malmoi.configs.optim import OptimSettings\n"
        "from malmoi.configs.train import ParallelSettings, TrainSettings\n"
        "from malmoi.train.backends.start import start_ranks\n"
        "try:\n    start_ranks(TrainSettings(precision='fp16'), OptimSettings(), ParallelSettings('zero2'))\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )
    assert "fp16: DeepSpeed has no fp16 on this device" in done.stdout, done.stderr


def test_offload_is_refused_by_a_backend_that_keeps_all_on_its_device() -> None:
    message = r"parallel\.offload: the backend is single, .* choose parallel\.backend zero1, zero2, zero3, "
    message += "fsdp2, or leave"
    with pytest.raises(UserError, match=message):
        start_ranks(TrainSettings(precision="fp32"), OptimSettings(), ParallelSettings(offload=True))


@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (3, "bf16")])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.7])
def test_zero_clips_as_the_run_says_and_at_nothing_else(stage: int, precision: Any, max_grad_norm: float) -> None:
    inputs = AcceleratorInputs("cpu", precision, max_grad_norm, stage == 3, collective_timeout(0))
    assert zero_config(stage, inputs)["gradient_clipping"] == max_grad_norm


def test_ranks_that_came_up_apart_stop_with_the_reason() -> None:
    accelerator = Accelerator(cpu=True)
    with pytest.raises(UserError, match=r"started 2 ranks, but they came up as 1 \(NO\) and would train separate"):
        require_requested_ranks(accelerator, TWO_RANKS, BACKENDS["ddp"])
    with pytest.raises(UserError, match="they came up as 1"):
        require_requested_ranks(accelerator, ONE_RANK, BACKENDS["zero2"])


PROGRAM = """
import json
import os
import sys
from pathlib import Path
import torch
from torch import distributed
from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import ParallelSettings, TrainSettings
from malmoi.train.backends.start import start_ranks

backend, seconds, folder = sys.argv[1:]
parallel = ParallelSettings(backend=backend, watchdog_timeout=int(seconds))
env = start_ranks(TrainSettings(precision="fp32"), OptimSettings(), parallel)
group = distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
seen = [int(group.options._timeout.total_seconds()), env.dims.dp_rank, env.dims.dp_size]
(Path(folder) / f"rank-{os.environ['RANK']}").write_text(json.dumps(seen))
distributed.barrier()
"""


@pytest.mark.parametrize(
    ("backend", "watchdog_timeout", "waits"),
    [
        ("ddp", 7200, 7200 + WATCHDOG_FIRST),
        pytest.param("zero1", 7200, 7200 + WATCHDOG_FIRST, marks=pytest.mark.soak),
        pytest.param("ddp", 0, 365 * 24 * 3600, marks=pytest.mark.soak),
    ],
)
def test_a_collective_outlasts_the_watchdog(tmp_path: Path, backend: str, watchdog_timeout: int, waits: int) -> None:
    """Ranks wait for each other as long as the watchdog lets them, and not as long as torch does by itself."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    launch = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    done = subprocess.run(
        [*launch, "--rdzv_endpoint", "127.0.0.1:0", str(program), backend, str(watchdog_timeout), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = [json.loads((tmp_path / f"rank-{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert seen == [[waits, rank, 2] for rank in (0, 1)]
