"""What a launcher says is read from its environment, and refused where Malmoi does not do it or the run contradicts."""

import json
import subprocess
from pathlib import Path

import pytest

from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import TrainSettings
from malmoi.errors import UserError
from malmoi.train.distributed.launch_env import LaunchEnv, read_launch_env
from tests.launching import ACCELERATE, ROOT, environment
from tests.time_limits import seconds

RANKS = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


def launched_with(folder: Path, **content: object) -> LaunchEnv:
    """What `accelerate launch` says with a DeepSpeed file of this content."""
    file = folder / "ds.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return read_launch_env({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)})


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
    assert read_launch_env(environment).backend == backend


@pytest.mark.parametrize(("value", "offload"), [("true", True), ("false", False)])
def test_the_launchers_fsdp_configuration_may_offload(value: str, offload: bool) -> None:
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": value}
    assert read_launch_env(fsdp).offload == offload


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "ZeRO stage 0: Malmoi has stages 1, 2 and 3"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1: set `fsdp_version: 2`"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM: Malmoi has"),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "two"}, "ZeRO stage two: Malmoi has"),
        (
            {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"},
            "offload_optimizer to nvme: Malmoi offloads to host memory only",
        ),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "offload_param without offload_optimizer"),
        ({**DEEPSPEED, "ACCELERATE_GRADIENT_CLIPPING": "much"}, "ACCELERATE_GRADIENT_CLIPPING much: not a number"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision fp8: Malmoi computes in fp32, bf16 or fp16"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, r"4 tasks were started \(SLURM_STEP_NUM_TASKS\) without RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "2 tasks were started"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE says 2 ranks that cannot meet without LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start them",
        ),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE x: a launcher sets this environment variable to a whole number of 1 or more"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE 0: a launcher sets"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is empty: a launcher sets"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "RANK one: a launcher sets .* of 0 or more"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2 of WORLD_SIZE 2: ranks are 0 to 1"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK 1 of WORLD_SIZE 1: ranks are 0 to 0"),
        ({**RANKS, "LOCAL_RANK": "-1"}, "LOCAL_RANK -1: a launcher sets"),
        ({**RANKS, "LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE x: a launcher sets"),
        ({**RANKS, "MASTER_PORT": "http"}, "MASTER_PORT http: a launcher sets"),
        ({"PMI_SIZE": "x"}, "PMI_SIZE x: a launcher sets"),
        ({"RANK": "1"}, "RANK=1 without WORLD_SIZE: .* `unset RANK` to train in one process"),
        ({"LOCAL_RANK": "0", "RANK": "0"}, "RANK=0 and LOCAL_RANK=0 without WORLD_SIZE: .* `unset RANK LOCAL_RANK`"),
    ],
)
def test_a_launch_that_malmoi_does_not_do_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_launch_env(environment)


def test_the_cpus_configuration_hides_the_gpus_from_its_ranks(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, pathlib, torch\n"
        "seen = torch.cuda._parse_visible_devices()\n"
        "pathlib.Path(__file__).with_name(f'rank-{os.environ[\"RANK\"]}').write_text(str(seen))\n",
        encoding="utf-8",
    )
    config = str(ROOT / "configs" / "accelerate" / "cpu.yaml")
    subprocess.run(
        [ACCELERATE, "launch", "--config_file", config, "--main_process_port", "0", str(script)],
        env={**environment(), "CUDA_VISIBLE_DEVICES": "0,1"},
        timeout=seconds(120),
        check=True,
    )
    assert [(tmp_path / f"rank-{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == ["[]", "[]"]


def test_tasks_with_ranks_are_ranks_and_each_is_a_data_parallel_rank() -> None:
    launched = read_launch_env({"SLURM_STEP_NUM_TASKS": "4", **RANKS})
    assert launched.num_ranks == 4
    assert (launched.dims.dp_rank, launched.dims.dp_size) == (1, 4)


def test_a_launcher_that_started_one_process_of_several_is_refused(tmp_path: Path) -> None:
    """Without a GPU and a configuration file `accelerate launch` starts one, whatever --num_processes says."""
    script = tmp_path / "rank.py"
    script.write_text(
        "from malmoi.errors import UserError\n"
        "from malmoi.train.distributed.launch_env import read_launch_env\n"
        "try:\n    print(read_launch_env().num_ranks)\nexcept UserError as error:\n    print(error)\n",
        encoding="utf-8",
    )

    def said(*options: str) -> str:
        # No configuration of this machine's own.
        hidden = {**environment(), "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
        words = [ACCELERATE, "launch", "--mixed_precision", "no", "--dynamo_backend", "no", *options, str(script)]
        done = subprocess.run(words, env=hidden, capture_output=True, text=True, timeout=seconds(120), check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    several = ("--num_machines", "1", "--num_processes", "2")
    assert "`accelerate launch` was to start several processes and started one" in said(*several)
    assert said("--num_machines", "1", "--num_processes", "1") == "1\n"


def require_agreement(launched: LaunchEnv, precision: str = "bf16", max_grad_norm: float = 1.0) -> None:
    """Against a run of these settings and two micro-batches a step."""
    train = TrainSettings(precision=precision)  # type: ignore[arg-type]
    launched.require_agreement(train, OptimSettings(max_grad_norm=max_grad_norm), 8, 2)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "accumulation steps is 4 .* and 2 by train.global_batch_size",
        ),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "gradient clipping is 0.5 .* and 1.0 by optim.max_grad_norm"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "precision is fp16 .* and bf16 by train.precision"),
    ],
)
def test_two_values_for_one_thing_stop_the_run(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_agreement(read_launch_env(environment))


def test_values_that_agree_are_no_contradiction() -> None:
    same = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    require_agreement(read_launch_env(same), "auto")
    defaults = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_GRADIENT_CLIPPING": "none"}
    require_agreement(read_launch_env({**defaults, "ACCELERATE_MIXED_PRECISION": "no"}), "auto")


def test_a_deepspeed_file_says_stage_offload_and_its_contradictions(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    launched = launched_with(
        tmp_path, zero_optimization=zero, gradient_accumulation_steps=8, gradient_clipping=1.0, bf16={"enabled": True}
    )
    assert launched == LaunchEnv(0, 1, "zero3", "bf16", 8, 1.0, True)
    with pytest.raises(UserError, match="accumulation steps is 8"):
        require_agreement(launched, "auto")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gradient_clipping": 1.0}, r"gradient clipping is 1\.0 .* and 0\.5 by optim\.max_grad_norm"),
        ({"gradient_accumulation_steps": 1}, r"accumulation steps is 1 .* and 4 by train\.global_batch_size"),
        ({"bf16": {"enabled": True}}, r"precision is bf16 .* and fp32 by train\.precision"),
        ({"fp16": {"enabled": True}}, r"precision is fp16 .* and fp32 by train\.precision"),
        ({"train_batch_size": 64}, r"global batch size is 64 .* and 32 by train\.global_batch_size"),
        ({"train_micro_batch_size_per_gpu": 4}, r"micro-batch size is 4 .* and 8 by train\.micro_batch_size"),
    ],
)
def test_a_value_in_a_deepspeed_file_that_is_not_the_runs_stops_it(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    train, optim = TrainSettings(precision="fp32", global_batch_size=32), OptimSettings(max_grad_norm=0.5)
    with pytest.raises(UserError, match=message):
        launched_with(tmp_path, zero_optimization={"stage": 2}, **content).require_agreement(train, optim, 8, 4)


def test_a_deepspeed_file_may_leave_all_to_the_run_or_say_the_same(tmp_path: Path) -> None:
    train, optim = TrainSettings(precision="bf16", global_batch_size=32), OptimSettings(max_grad_norm=0.5)
    auto = dict.fromkeys(("gradient_clipping", "gradient_accumulation_steps", "train_batch_size"), "auto")
    left = launched_with(tmp_path, zero_optimization={"stage": 2}, bf16={"enabled": "auto"}, **auto)
    assert left == LaunchEnv(0, 1, "zero2", None, None, None, False)
    same = launched_with(
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
        launched.require_agreement(train, optim, 8, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimization": {"stage": "auto"}}, "ZeRO stage auto: Malmoi has stages 1, 2 and 3"),
        ({"gradient_clipping": 1.0}, "ZeRO stage 0: Malmoi has stages 1, 2 and 3"),
        ({"zero_optimization": 2}, r"ds\.json: zero_optimization 2: no JSON object"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer to nvme: Malmoi offloads to host memory only",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param to nvme"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            "offload_param without offload_optimizer",
        ),
        ({"zero_optimization": {"stage": 2}, "gradient_clipping": "much"}, "gradient_clipping much: write a number"),
        ({"zero_optimization": {"stage": 2}, "train_batch_size": 0.5}, "train_batch_size 0.5: write an integer"),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": "yes"}}, "fp16.enabled yes: write true or false"),
        (
            {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}, "bf16": {"enabled": True}},
            "bf16 and fp16 are both enabled",
        ),
    ],
)
def test_a_deepspeed_file_that_malmoi_does_not_do_is_refused(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        launched_with(tmp_path, **content)


def test_a_deepspeed_file_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    named = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    for content, message in ((None, "cannot be read"), ("{", "cannot be read"), ("[1]", "no JSON object")):
        if content is not None:
            file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=rf"ds\.json: {message}"):
            read_launch_env(named)
