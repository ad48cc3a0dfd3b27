"""Launches that came up wrong, or say something else than the run, stop with the reason."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from configs.errors import BadInput
from configs.schema import BackendName, ParallelSettings, RunSettings, TrainSettings
from tests.launching import ACCELERATE, ROOT, environment
from train.dry_run import dry_run
from train.launcher import LaunchedRanks, launched_ranks
from train.parallel import require_what_was_asked, resolved_backend
from train.run import run
from train.trackers import require_trackers
from train.zero_config import zero_config

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


def launched_by(folder: Path, **says: object) -> LaunchedRanks:
    """What `accelerate launch` says with a DeepSpeed file of this content."""
    file = folder / "ds.json"
    file.write_text(json.dumps(says))
    return launched_ranks({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)})


@pytest.mark.parametrize(
    ("environment", "backend"),
    [
        ({}, None),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero1"),
        (DEEPSPEED, "zero2"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
    ],
)
def test_the_launchers_configuration_chooses_the_backend(environment: dict[str, str], backend: str | None) -> None:
    assert launched_ranks(environment).backend == backend


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "ZeRO stage 0: Malmoi runs stages 1, 2 and 3"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1: set `fsdp_version: 2`"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM: Malmoi runs"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "two"}, "ZeRO stage two: Malmoi runs"),
        (
            {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"},
            "offload_optimizer to nvme: Malmoi offloads to the host's memory alone",
        ),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "offload_param without offload_optimizer"),
        ({**DEEPSPEED, "ACCELERATE_GRADIENT_CLIPPING": "much"}, "ACCELERATE_GRADIENT_CLIPPING much: no number"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision fp8: Malmoi computes in fp32, bf16 or fp16"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, r"4 tasks were started \(SLURM_STEP_NUM_TASKS\) without RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "2 tasks were started"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE says 2 ranks, but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT, so they cannot meet",
        ),
    ],
)
def test_a_launch_that_malmoi_does_not_do_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        launched_ranks(environment)


def test_the_cpus_configuration_hides_the_gpus_from_its_ranks(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, pathlib, torch\n"
        "seen = torch.cuda._parse_visible_devices()\n"
        "pathlib.Path(__file__).with_name(f'rank-{os.environ[\"RANK\"]}').write_text(str(seen))\n"
    )
    config = str(ROOT / "configs" / "accelerate" / "cpu.yaml")
    subprocess.run(
        [ACCELERATE, "launch", "--config_file", config, "--main_process_port", "0", str(script)],
        env={**environment(), "CUDA_VISIBLE_DEVICES": "0,1"},
        timeout=120,
        check=True,
    )
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["[]", "[]"]


def test_tasks_with_ranks_are_ranks() -> None:
    ranks = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    assert launched_ranks({"SLURM_STEP_NUM_TASKS": "4", **ranks}).world_size == 4


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "accumulation steps are 4 .* and 2 by train.global_batch"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "norms to clip at are 0.5 .* and 1.0 by train.clip_norm"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "precisions are fp16 .* and bf16 by train.precision"),
    ],
)
def test_two_numbers_for_one_thing_stop_the_run(environment: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        launched_ranks(environment).require_no_contradiction(TrainSettings(precision="bf16"), 2)


def test_numbers_that_agree_are_no_contradiction() -> None:
    same = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    launched_ranks(same).require_no_contradiction(TrainSettings(), 2)
    defaults = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_GRADIENT_CLIPPING": "none"}
    launched_ranks({**defaults, "ACCELERATE_MIXED_PRECISION": "no"}).require_no_contradiction(TrainSettings(), 2)


def test_a_deepspeed_file_says_stage_offload_and_its_contradictions(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    launched = launched_by(
        tmp_path, zero_optimization=zero, gradient_accumulation_steps=8, gradient_clipping=1.0, bf16={"enabled": True}
    )
    assert launched == LaunchedRanks(1, "zero3", "bf16", 8, 1.0, True)
    with pytest.raises(BadInput, match="accumulation steps are 8"):
        launched.require_no_contradiction(TrainSettings(), 2)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"gradient_clipping": 1.0}, r"norms to clip at are 1\.0 .* and 0\.5 by train\.clip_norm"),
        ({"gradient_accumulation_steps": 1}, r"accumulation steps are 1 .* and 4 by train\.global_batch"),
        ({"bf16": {"enabled": True}}, r"precisions are bf16 .* and fp32 by train\.precision"),
        ({"fp16": {"enabled": True}}, r"precisions are fp16 .* and fp32 by train\.precision"),
        ({"train_batch_size": 64}, r"samples an update are 64 .* and 32 by train\.global_batch"),
        ({"train_micro_batch_size_per_gpu": 4}, r"samples of a rank at once are 4 .* and 8 by train\.micro_batch"),
    ],
)
def test_a_number_in_a_deepspeed_file_that_is_not_the_runs_stops_it(
    tmp_path: Path, says: dict[str, object], message: str
) -> None:
    train = TrainSettings(precision="fp32", clip_norm=0.5, global_batch=32, micro_batch=8)
    with pytest.raises(BadInput, match=message):
        launched_by(tmp_path, zero_optimization={"stage": 2}, **says).require_no_contradiction(train, 4)


def test_a_deepspeed_file_may_leave_all_to_the_run_or_say_the_same(tmp_path: Path) -> None:
    train = TrainSettings(precision="bf16", clip_norm=0.5, global_batch=32, micro_batch=8)
    auto = dict.fromkeys(("gradient_clipping", "gradient_accumulation_steps", "train_batch_size"), "auto")
    left = launched_by(tmp_path, zero_optimization={"stage": 2}, bf16={"enabled": "auto"}, **auto)
    assert left == LaunchedRanks(1, "zero2", None, None, None, False)
    same = launched_by(
        tmp_path,
        zero_optimization={"stage": 2, "offload_optimizer": None},
        gradient_clipping=0.5,
        gradient_accumulation_steps=4,
        train_batch_size=32,
        train_micro_batch_size_per_gpu=8,
        bf16={"enabled": True},
        fp16={"enabled": False},
    )
    for launched in (left, same):
        launched.require_no_contradiction(train, 4)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"zero_optimization": {"stage": "auto"}}, "ZeRO stage auto: Malmoi runs stages 1, 2 and 3"),
        ({"gradient_clipping": 1.0}, "ZeRO stage 0: Malmoi runs stages 1, 2 and 3"),
        ({"zero_optimization": 2}, r"ds\.json: zero_optimization 2: no JSON object"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer to nvme: Malmoi offloads to the host's memory alone",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param to nvme"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            "offload_param without offload_optimizer",
        ),
        ({"zero_optimization": {"stage": 2}, "gradient_clipping": "much"}, "gradient_clipping much: write a number"),
        ({"zero_optimization": {"stage": 2}, "train_batch_size": 0.5}, "train_batch_size 0.5: write a whole number"),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": "yes"}}, "fp16.enabled yes: write true or false"),
        (
            {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}, "bf16": {"enabled": True}},
            "bf16 and fp16 are both enabled",
        ),
    ],
)
def test_a_deepspeed_file_that_malmoi_does_not_do_is_refused(
    tmp_path: Path, says: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        launched_by(tmp_path, **says)


def test_a_deepspeed_file_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    named = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    for content, message in ((None, "cannot be read"), ("{", "cannot be read"), ("[1]", "no JSON object")):
        if content is not None:
            file.write_text(content)
        with pytest.raises(BadInput, match=rf"ds\.json: {message}"):
            launched_ranks(named)


@pytest.mark.parametrize(
    ("asked", "launched", "chosen"),
    [
        ("auto", LaunchedRanks(1, None, None, None, None, False), "single"),
        ("auto", LaunchedRanks(2, None, None, None, None, False), "ddp"),
        ("ddp", LaunchedRanks(1, None, None, None, None, False), "single"),
        ("zero2", LaunchedRanks(1, None, None, None, None, False), "zero2"),
        ("auto", LaunchedRanks(2, "fsdp2", None, None, None, False), "fsdp2"),
    ],
)
def test_setting_and_launcher_choose_together(asked: BackendName, launched: LaunchedRanks, chosen: str) -> None:
    assert resolved_backend(asked, launched) == chosen


def test_a_setting_against_the_launcher_is_refused() -> None:
    with pytest.raises(BadInput, match=r"parallel\.backend is zero3, and the launcher's configuration asks for zero2"):
        resolved_backend("zero3", LaunchedRanks(2, "zero2", None, None, None, False))
    with pytest.raises(BadInput, match="single with 2 ranks would train as many models; use ddp"):
        resolved_backend("single", LaunchedRanks(2, None, None, None, None, False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": TrainSettings(global_batch=8, micro_batch=3)}, "8 is no multiple of train.micro_batch 3 x 1 ranks"),
        (
            {"train": TrainSettings(optimizer="muon"), "parallel": ParallelSettings(backend="zero1")},
            "muon needs whole matrices, which zero1 cuts into flat pieces",
        ),
    ],
)
@pytest.mark.parametrize("begins", [run, dry_run])
def test_what_does_not_go_with_the_ranks_is_refused_before_text_is_prepared(
    begins: Callable[[RunSettings], int],
    change: dict[str, Any],
    message: str,
    tiny_settings: RunSettings,
    tmp_path: Path,
) -> None:
    with pytest.raises(BadInput, match=message):
        begins(replace(tiny_settings, run=str(tmp_path / "run"), **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "muon"}, "muon needs whole matrices, which zero2 cuts into flat pieces; use adamw"),
        ({"precision": "fp16"}, "fp16: DeepSpeed has no fp16 on this device"),
    ],
)
def test_what_zero_cannot_do_is_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    script = (
        "import sys, json; from pathlib import Path; from configs.errors import BadInput\n"
        "from configs.schema import *; from train.parallel import start_ranks\n"
        "train = TrainSettings(**json.loads(sys.argv[1]))\n"
        "try:\n    start_ranks(train, ParallelSettings('zero2'), Path(sys.argv[2]))\n"
        "except BadInput as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(change), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in done.stdout, done.stderr


def test_zero_clips_as_the_run_says_and_at_nothing_else() -> None:
    assert zero_config(TrainSettings(clip_norm=0.0), 2, False, "fp32", False)["gradient_clipping"] == 0.0
    assert zero_config(TrainSettings(clip_norm=0.7), 3, False, "bf16", True)["gradient_clipping"] == 0.7


def test_ranks_that_came_up_apart_stop_with_the_reason() -> None:
    accelerator = Accelerator(cpu=True)
    two = LaunchedRanks(2, None, None, None, None, False)
    with pytest.raises(BadInput, match=r"started 2 ranks, but they came up as 1 \(NO\) and would train separate"):
        require_what_was_asked(accelerator, two, deepspeed=False)
    with pytest.raises(BadInput, match="they came up as 1"):
        require_what_was_asked(accelerator, LaunchedRanks(1, "zero2", None, None, None, False), deepspeed=True)


def test_a_tracker_that_is_unknown_or_not_installed_is_named() -> None:
    require_trackers(("tensorboard",))
    with pytest.raises(BadInput, match=r"train\.trackers tensorbord: no such tracker; did you mean 'tensorboard'\?"):
        require_trackers(("tensorbord",))
    with pytest.raises(BadInput, match=r"train\.trackers clearml: its package is not installed; `pip install clearml`"):
        require_trackers(("tensorboard", "clearml"))
