"""Real training on a real two-node cluster: the losses of one rank, through signals, failures and restarts."""

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from tests.launch.cluster.cluster import Cluster, wait_for
from tests.launch.cluster.runs import SubmittedRun, malmoi_slurm, submit

STEPS = 100
TWO_NODES = ("--nodes", "2")
BACKENDS = ["ddp", "zero2"]


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout, long enough to be interrupted, whose tokenizer and shards are not there yet."""
    folder = tmp_path_factory.mktemp("cluster")
    settings = replace(
        tiny_settings,
        tokenizer=replace(tiny_settings.tokenizer, path=None),
        data=replace(tiny_settings.data, cache=str(folder / "cache")),
        model=replace(tiny_settings.model, dropout=0.1),
        train=replace(tiny_settings.train, max_steps=STEPS),
        checkpoint=replace(tiny_settings.checkpoint, every=20),
        eval=replace(tiny_settings.eval, every=50),
    )
    file = folder / "tiny.yaml"
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    return file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@dataclass(frozen=True)
class FirstRun:
    """The first run, over two nodes and uninterrupted."""

    run: SubmittedRun
    builds: frozenset[str]
    """Names of the folders that tokenizer and shards were built in."""


@pytest.fixture(scope="module")
def first_run(cluster: Cluster, config: Path, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    run = submit(cluster, config, tmp_path_factory.mktemp("two") / "run", *TWO_NODES)
    builds: set[str] = set()

    def has_ended() -> bool:
        for _ in range(20):
            for folder in (run.folder, config.parent / "cache"):
                builds.update(file.name for file in folder.glob(".*.building-*"))
            time.sleep(0.01)
        return cluster.job(run.job)["JobState"] in ("COMPLETED", "FAILED")

    wait_for(has_ended, 150, f"the end of {run.folder}")
    run.wait_for_end("COMPLETED")
    return FirstRun(run, frozenset(builds))


@pytest.fixture(scope="module")
def two_nodes(first_run: FirstRun) -> SubmittedRun:
    return first_run.run


@pytest.fixture(scope="module")
def one_rank(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path_factory: pytest.TempPathFactory
) -> SubmittedRun:
    run = submit(cluster, config, tmp_path_factory.mktemp("one") / "run")
    run.wait_for_end("COMPLETED")
    return run


def test_every_task_of_a_job_asks_for_the_data_and_it_is_built_once(config: Path, first_run: FirstRun) -> None:
    """Tokenizer and shards: one folder each that they were built in, whoever built there."""
    tokenizers = {name for name in first_run.builds if name.startswith(".tokenizer")}
    # A builder that is quick may not be seen at all; two never are.
    assert len(tokenizers) <= 1 and len(first_run.builds - tokenizers) <= 1, first_run.builds
    shards = [folder for folder in (config.parent / "cache").iterdir() if not folder.name.startswith(".")]
    assert len(shards) == 1


def test_one_node_and_two_log_the_losses_of_one_rank(one_rank: SubmittedRun, two_nodes: SubmittedRun) -> None:
    assert len(one_rank.losses()) == len(two_nodes.losses()) == STEPS
    assert max(abs(a - b) for a, b in zip(one_rank.losses(), two_nodes.losses(), strict=True)) < 5e-6
    assert two_nodes.log().count("2 ranks, rendezvous n1:") == 1
    names = [file.name for file in (two_nodes.folder / "slurm" / f"{two_nodes.job}-0").iterdir()]
    assert sorted(names) == ["rank-0.log", "rank-1.log"], "one log a rank"


@pytest.mark.parametrize(
    "backend",
    # Stages 1 and 2 start as stage 3 does.
    [
        pytest.param(name, marks=pytest.mark.soak if name in ("zero1", "zero2") else ())
        for name in BACKENDS
        if name != "ddp"
    ],
)
def test_every_backend_logs_the_losses_of_one_rank(
    cluster: Cluster, config: Path, one_rank: SubmittedRun, tmp_path: Path, backend: str
) -> None:
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES, "--parallel.backend", backend)
    run.wait_for_end("COMPLETED")
    apart = [abs(a - b) for a, b in zip(one_rank.losses(), run.losses(), strict=True)]
    # Sums in another order differ in their last bits, and training multiplies that: a hundred steps are further apart
    # than the twenty that tests/train/test_backends.py compares.
    assert max(apart[:20]) < 5e-6, apart
    assert max(apart) < 5e-5, apart


def test_a_signaled_job_saves_is_requeued_and_ends_with_the_weights_of_an_uninterrupted_run(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    cluster.ask("scancel", "--batch", "--signal=USR1", run.job)
    fields = run.wait_for_end("COMPLETED")
    assert fields["Restarts"] == "1"
    assert [line.split()[:2] for line in run.starts()] == [[run.job, "0"], [run.job, "1"]]
    saved = int(run.starts()[1].split()[2])
    assert 21 <= saved < STEPS and saved % 20, "the step of the signal, not of a planned checkpoint"
    assert f"requeueing job {run.job}, to resume from step {saved}" in run.log()
    assert f"resuming from step {saved}" in run.rank_logs()
    assert run.losses() == two_nodes.losses()
    assert same_weights(run.folder, two_nodes.folder)
    status = malmoi_slurm(cluster, "status", str(run.folder)).stdout
    assert f"job {run.job}: COMPLETED" in status and "restarts of the latest submission 1" in status
    assert f"step {STEPS} of {STEPS}, loss {run.losses()[-1]:.4f}" in status


def test_a_canceled_job_saves_is_not_requeued_and_resumes_when_submitted_again(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    cluster.ask("scancel", run.job)
    fields = run.wait_for_end("CANCELLED")
    wait_for(lambda: "canceled: submit again to resume from step" in run.log(), 30, run.log())
    assert fields["Restarts"] == "0" and len(run.starts()) == 1
    saved = run.newest_checkpoint()
    assert saved >= 21 and f"canceled: submit again to resume from step {saved}" in run.log()
    again = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    again.wait_for_end("COMPLETED")
    assert again.starts()[-1].split()[:3] == [again.job, "0", str(saved)]
    assert same_weights(run.folder, two_nodes.folder)


def test_after_a_node_failure_the_job_is_requeued_and_resumes(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    ranks = [pid for pid in psutil.pids() if _trains(pid, run.folder, "n2")]
    cluster.kill("slurmd.n2")
    # The ranks of a real node would end with it; here they only share its name.
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "DOWN" in cluster.ask("sinfo", "--noheader", "--node=n2", "--format=%T").upper(), 60, "n2 down")
    wait_for(lambda: cluster.job(run.job)["Restarts"] == "1", 60, "requeued")
    cluster.start_node("n2")
    fields = run.wait_for_end("COMPLETED")
    assert fields["Restarts"] == "1"
    assert same_weights(run.folder, two_nodes.folder)


def _trains(pid: int, folder: Path, node: str) -> bool:
    """Whether a process is a rank of the run in `folder` on `node`."""
    try:
        process = psutil.Process(pid)
        words, environment = process.cmdline(), process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return str(folder) in words and "malmoi.train" in words and environment.get("SLURMD_NODENAME") == node


def test_a_killed_rank_ends_the_others_soon_with_its_error_and_the_job_resumes(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    """The bound on restarts is tested in test_job_script.py."""
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    (rank,) = [pid for pid in psutil.pids() if _trains(pid, run.folder, "n2") and _is_python(pid)]
    os.kill(rank, signal.SIGKILL)
    wait_for(lambda: "rank 1 on n2 exited with code 137; the end of" in run.log(), 30, "the rank's error")
    cluster.wait_for_state(run.job, "PENDING", "COMPLETING", "REQUEUED", base=30)
    assert "rank 1 on n2 exited with code 137, signal 9" in run.rank_logs()
    assert run.wait_for_end("COMPLETED")["Restarts"] == "1"
    assert int(run.starts()[1].split()[2]) in (20, 40, 60, 80), "a planned checkpoint: no signal asked for one"
    assert run.losses() == two_nodes.losses()
    assert same_weights(run.folder, two_nodes.folder)


def _is_python(pid: int) -> bool:
    return psutil.Process(pid).name().startswith("python")


def test_bad_input_ends_the_job_with_code_2_and_its_reason_and_is_not_requeued(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.jsonl"
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES, "--corpus.input", f"[{gone}]", "--data.cache", "null")
    fields = run.wait_for_end("FAILED")
    assert fields["ExitCode"] == "2:0" and fields["Restarts"] == "0"
    assert f"{gone}" in run.log() and "malmoi train:" in run.log() and "not requeued" in run.log()
    assert "Traceback" not in run.rank_logs()


@pytest.mark.soak
def test_two_jobs_on_one_node_train_at_the_same_time_on_their_own_ports(
    cluster: Cluster, config: Path, one_rank: SubmittedRun, tmp_path: Path
) -> None:
    words = ("--ranks_per_node", "2", "--sbatch", "nodelist=n1")
    runs = [submit(cluster, config, tmp_path / name, *words) for name in ("a", "b")]
    wait_for(lambda: all("rendezvous" in run.log() for run in runs), 60, "both started")
    assert len({run.log().split("rendezvous n1:")[1].split(",")[0] for run in runs}) == 2
    for run in runs:
        run.wait_for_end("COMPLETED")
        assert max(abs(a - b) for a, b in zip(run.losses(), one_rank.losses(), strict=True)) < 5e-6


@dataclass(frozen=True)
class Background:
    """Jobs that run beside the chain test, since they need no intervention."""

    with_data_job: SubmittedRun
    pending: dict[str, str]
    """Its fields right after it was submitted."""
    sweep: SubmittedRun


@pytest.fixture(scope="module")
def background(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path_factory: pytest.TempPathFactory
) -> Background:
    folder = tmp_path_factory.mktemp("background")
    words = ("--data_job", "--data_cpus", "2", "--data_time", "10", "--data.cache", str(folder / "cache"))
    with_data_job = submit(cluster, config, folder / "run", "--train.max_steps", "2", *words)
    pending = cluster.job(with_data_job.job)
    grid = ("--grid", "optim.lr=1e-4,1e-2,1e-3", "train.seed=1")
    sweep = submit(cluster, config, folder / "sweep", "--train.max_steps", "15", *grid, subcommand="sweep")
    return Background(with_data_job, pending, sweep)


def test_a_chain_resumes_over_allocations_until_the_run_is_done(
    cluster: Cluster, config: Path, one_rank: SubmittedRun, background: Background, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", "--chain")
    run.wait_for_step(21)
    cluster.ask("scancel", "--batch", "--signal=USR1", run.job)
    wait_for(lambda: len(run.starts()) == 2, 60, run.log())
    second = run.starts()[1].split()[0]
    assert second == run.starts()[0].split()[5] != run.job
    cluster.wait_for_state(second, "COMPLETED")
    third = run.starts()[1].split()[5]
    assert cluster.job(third)["JobState"] == "CANCELLED", "nothing is left in the queue"
    assert cluster.job(run.job)["Restarts"] == "0"
    assert run.losses() == one_rank.losses()
    assert same_weights(run.folder, one_rank.folder)
    assert "restarts of the latest submission 1" in malmoi_slurm(cluster, "status", str(run.folder)).stdout


def test_a_data_job_prepares_and_training_waits_for_it(cluster: Cluster, background: Background) -> None:
    run = background.with_data_job
    data = run.printed.split("\njob ")[1].split()[0]
    assert background.pending["JobState"] == "PENDING"
    assert background.pending["Dependency"].startswith(f"afterok:{data}")
    run.wait_for_end("COMPLETED")
    assert cluster.job(data)["JobState"] == "COMPLETED"
    assert "preparing" in (run.folder / "slurm" / f"data-{data}.log").read_text(encoding="utf-8")
    status = malmoi_slurm(cluster, "status", str(run.folder)).stdout
    assert f"job {data}: COMPLETED" in status and f"job {run.job}: COMPLETED" in status


def test_a_sweep_trains_a_run_for_each_combination_and_ranks_them(cluster: Cluster, background: Background) -> None:
    sweep = background.sweep
    for task in (0, 1, 2):
        cluster.wait_for_state(f"{sweep.job}_{task}", "COMPLETED")
    shown = malmoi_slurm(cluster, "status", str(sweep.folder))
    table = [line.split() for line in shown.stdout.splitlines()]
    assert table and table[0][:3] == ["run", "optim.lr", "train.seed"], shown.stderr
    assert [line[:3] for line in table[1:]] == [["001", "1e-2", "1"], ["002", "1e-3", "1"], ["000", "1e-4", "1"]]
    assert all(line[-1] == "done" for line in table[1:])
    figures = [float(line[3]) for line in table[1:]]
    assert figures == sorted(figures)
