"""Requests that the cluster cannot run are refused before they are submitted, and nothing is queued."""

from pathlib import Path

import pytest

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from tests.launch.cluster.cluster import Cluster
from tests.launch.cluster.runs import malmoi_slurm

BATCH = ("--train.global_batch_size", "64", "--train.micro_batch_size", "1")
SHARED = ("--shared_filesystem", "true", "--time", "30")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*SHARED, "--gpus_per_node", "4"), "--gpus_per_node 4: a node of partition main has at most 2 GPUs"),
        ((*SHARED, "--gpu_type", "h100"), "has at most 0 h100 GPUs"),
        ((*SHARED, "--partition", "gpus"), "--partition gpus: no such partition; there are: main, urgent"),
        ((*SHARED, "--nodes", "4"), "--nodes 4: only 2 of the 2 nodes of partition main have 1 GPUs and 1 cores"),
        ((*SHARED, "--cpus_per_rank", "9"), "no node of partition main with 1 GPUs has 9 cores"),
        ((*SHARED, "--nodes", "2", "--train.global_batch_size", "3"), "train.global_batch_size 3 is no multiple"),
        (
            ("--shared_filesystem", "true", "--time", "2:00:00"),
            "--time 2:00:00: partition main allows at most 60 minutes",
        ),
        (("--shared_filesystem", "auto", "--time", "30"), "a local disk that other nodes cannot see"),
        ((*SHARED, "--sbatch", "nodelist=n9"), "sbatch: "),
        ((*SHARED, "--data_job", "--data_time", "30", "--data_cpus", "99"), "--data_cpus 99: the nodes of partition"),
        (
            (*SHARED, "--data_job", "--data_cpus", "1", "--data_time", "30", "--sbatch", "nodelist=n9"),
            "Invalid node name specified",
        ),
    ],
)
def test_what_the_cluster_cannot_do_is_refused(
    cluster: Cluster, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    config = tmp_path / "settings.yaml"
    settings = RunSettings(corpus=CorpusSettings(input=("x",)), train=TrainSettings(max_steps=1))
    config.write_text(settings_as_yaml(settings), encoding="utf-8")
    run = Path("/dev/shm/malmoi-run") if "auto" in words else tmp_path / "run"
    done = malmoi_slurm(cluster, "submit", "--config", str(config), "--run", str(run), *BATCH, *words)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr and done.stderr.count("\n") == 1
    queued = cluster.ask("squeue", "--noheader", "--name=malmoi-run,malmoi-malmoi-run,malmoi-run-data", "--states=PD,R")
    assert queued == ""


@pytest.mark.parametrize("words", [("submit",), ("sweep", "--grid", "train.seed=1,2")], ids=["submit", "sweep"])
def test_a_job_without_text_is_refused_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, words: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    done = malmoi_slurm(cluster, words[0], "--config", "gpt2-small", "--run", str(run), *SHARED, *words[1:])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "corpus.input is empty" in done.stderr
    assert not run.exists()


def test_the_status_of_what_was_never_submitted_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    assert "no submitted run" in malmoi_slurm(cluster, "status", str(tmp_path)).stderr
