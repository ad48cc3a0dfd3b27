"""Real training on a real two-node cluster: the same losses as on one rank, whatever happens to the job."""

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from configs.command_line import settings_as_yaml
from configs.schema import RunSettings
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.runs import SubmittedRun, malmoi_slurm, submit

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
        train=replace(tiny_settings.train, steps=STEPS, save_every=20, evaluate_every=50),
    )
    file = folder / "tiny.yaml"
    file.write_text(settings_as_yaml(settings))
    return file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@dataclass(frozen=True)
class FirstRun:
    """The first run of all, over two nodes and undisturbed."""

    run: SubmittedRun
    builds: frozenset[str]
    """Names of the folders that anything was built in."""


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


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "ddp"])
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


def test_a_warned_job_saves_is_requeued_and_ends_with_the_weights_of_an_undisturbed_run(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    cluster.ask("scancel", "--batch", "--signal=USR1", run.job)
    fields = run.wait_for_end("COMPLETED")
    assert fields["Restarts"] == "1"
    assert [line.split()[:2] for line in run.starts()] == [[run.job, "0"], [run.job, "1"]]
    saved = int(run.starts()[1].split()[2])
    assert 21 <= saved < STEPS and saved % 20, "the step of the warning, not of a planned checkpoint"
    assert f"asks to be requeued as {run.job}, to go on from step {saved}" in run.log()
    assert f"going on from step {saved}" in run.rank_logs()
    assert run.losses() == two_nodes.losses()
    assert same_weights(run.folder, two_nodes.folder)
    status = malmoi_slurm(cluster, "status", str(run.folder)).stdout
    assert f"job {run.job}: COMPLETED" in status and "restarts of the latest submission 1" in status
    assert f"step {STEPS} of {STEPS}, loss {run.losses()[-1]:.4f}" in status


def test_a_cancelled_job_saves_and_is_not_requeued_and_goes_on_when_submitted_again(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    cluster.ask("scancel", run.job)
    fields = run.wait_for_end("CANCELLED")
    wait_for(lambda: "cancelled: the newest checkpoint" in run.log(), 30, run.log())
    assert fields["Restarts"] == "0" and len(run.starts()) == 1
    saved = run.newest_checkpoint()
    assert saved >= 21 and f"newest checkpoint is of step {saved}" in run.log()
    again = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    again.wait_for_end("COMPLETED")
    assert again.starts()[-1].split()[:3] == [again.job, "0", str(saved)]
    assert same_weights(run.folder, two_nodes.folder)


def test_after_a_node_is_lost_the_job_is_requeued_and_goes_on(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    ranks = [pid for pid in psutil.pids() if _trains(pid, run.folder, "n2")]
    cluster.kill("slurmd.n2")
    # A node that is lost takes its ranks along; here they only share its name.
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
    return str(folder) in words and "train" in words and environment.get("SLURMD_NODENAME") == node


def test_a_killed_rank_ends_the_others_soon_with_its_error_and_the_job_goes_on(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path: Path
) -> None:
    """That it goes on no oftener than it may is in test_job_script.py."""
    run = submit(cluster, config, tmp_path / "run", *TWO_NODES)
    run.wait_for_step(21)
    (rank,) = [pid for pid in psutil.pids() if _trains(pid, run.folder, "n2") and _is_python(pid)]
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: "rank 1 on n2 ended with code 137; the end of" in run.log(), 30, "the rank's error")
    cluster.wait_for_state(run.job, "PENDING", "COMPLETING", "REQUEUED", seconds=30)
    assert time.monotonic() - killed < 30
    assert "rank 1 on n2 ended with code 137, signal 9" in run.rank_logs()
    assert run.wait_for_end("COMPLETED")["Restarts"] == "1"
    assert int(run.starts()[1].split()[2]) in (20, 40, 60, 80), "a planned checkpoint: none was asked for"
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


def test_two_jobs_on_one_node_train_at_once_at_ports_of_their_own(
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
class Unwatched:
    """Jobs that are begun before the chain, since nobody need do anything to them."""

    with_data_job: SubmittedRun
    waiting: dict[str, str]
    """Its fields right after it was submitted."""
    sweep: SubmittedRun


@pytest.fixture(scope="module")
def unwatched(
    cluster: Cluster, config: Path, two_nodes: SubmittedRun, tmp_path_factory: pytest.TempPathFactory
) -> Unwatched:
    folder = tmp_path_factory.mktemp("unwatched")
    words = ("--data_job", "--data_cpus", "2", "--data_time", "10", "--data.cache", str(folder / "cache"))
    with_data_job = submit(cluster, config, folder / "run", "--train.steps", "2", *words)
    waiting = cluster.job(with_data_job.job)
    grid = ("--grid", "train.learning_rate=1e-4,1e-2,1e-3", "train.seed=1")
    sweep = submit(cluster, config, folder / "sweep", "--train.steps", "15", *grid, subcommand="sweep")
    return Unwatched(with_data_job, waiting, sweep)


def test_a_chain_goes_on_over_allocations_until_the_run_is_done(
    cluster: Cluster, config: Path, one_rank: SubmittedRun, unwatched: Unwatched, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", "--until_done")
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


def test_a_data_job_prepares_and_training_waits_for_it(cluster: Cluster, unwatched: Unwatched) -> None:
    run = unwatched.with_data_job
    data = run.said.split("\njob ")[1].split()[0]
    assert unwatched.waiting["JobState"] == "PENDING"
    assert unwatched.waiting["Dependency"].startswith(f"afterok:{data}")
    run.wait_for_end("COMPLETED")
    assert cluster.job(data)["JobState"] == "COMPLETED"
    assert "preparing" in (run.folder / "slurm" / f"data-{data}.log").read_text()
    status = malmoi_slurm(cluster, "status", str(run.folder)).stdout
    assert f"job {data}: COMPLETED" in status and f"job {run.job}: COMPLETED" in status


def test_a_sweep_trains_a_run_for_each_combination_and_ranks_them(cluster: Cluster, unwatched: Unwatched) -> None:
    sweep = unwatched.sweep
    for task in (0, 1, 2):
        cluster.wait_for_state(f"{sweep.job}_{task}", "COMPLETED")
    said = malmoi_slurm(cluster, "status", str(sweep.folder))
    table = [line.split() for line in said.stdout.splitlines()]
    assert table and table[0][:3] == ["run", "train.learning_rate", "train.seed"], said.stderr
    assert [line[:3] for line in table[1:]] == [["001", "1e-2", "1"], ["002", "1e-3", "1"], ["000", "1e-4", "1"]]
    assert all(line[-1] == "done" for line in table[1:])
    figures = [float(line[3]) for line in table[1:]]
    assert figures == sorted(figures)
