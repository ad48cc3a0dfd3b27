"""`malmoi prepare --executor slurm` on a real cluster: the bytes of a local build, and no job left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from malmoi.configs.run import RunSettings
from tests.launch.cluster.cluster import Cluster, wait_for
from tests.launching import ROOT, run_malmoi
from tests.time_limits import seconds

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
WORKERS_OF = """
jobqueue:
  slurm:
    cores: 1
    processes: 1
    memory: 1GB
    walltime: "00:10:00"
    python: {python}
    local-directory: {folder}
    log-directory: {folder}
    job-script-prologue: ["cd {root}", "export PYTHONPATH={root} OMP_NUM_THREADS=1"]
distributed:
  dashboard:
    link: ""
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """dask-jobqueue's own configuration, as a site writes it."""
    folder = tmp_path / "dask"
    folder.mkdir()
    (folder / "jobqueue.yaml").write_text(
        WORKERS_OF.format(python=sys.executable, folder=folder, root=ROOT), encoding="utf-8"
    )
    return folder


def prepare(cluster: Cluster, site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from malmoi.launch.cli import main; sys.exit(main())", "prepare", *words],
        env={**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DASK_CONFIG": str(site)},
        capture_output=True,
        text=True,
        timeout=seconds(300),
        check=False,
    )


def worker_jobs(cluster: Cluster) -> dict[str, str]:
    """The state of every job of dask-jobqueue, ended ones too."""
    jobs = cluster.ask("scontrol", "--oneliner", "show", "jobs").splitlines()
    fields = [dict(word.split("=", 1) for word in job.split() if "=" in word) for job in jobs]
    return {job["JobId"]: job["JobState"] for job in fields if job.get("JobName") == "dask-worker"}


def is_quiet(cluster: Cluster) -> bool:
    return not set(worker_jobs(cluster).values()) & {"RUNNING", "PENDING", "COMPLETING", "CONFIGURING"}


def test_jobs_on_slurm_write_the_same_bytes_and_end(
    cluster: Cluster, site: Path, tiny_settings: RunSettings, corpus_file: Path, tmp_path: Path
) -> None:
    assert tiny_settings.tokenizer.path is not None
    words = ("--input", str(corpus_file), "--tokenizer", tiny_settings.tokenizer.path)
    alone = Path(run_malmoi("prepare", *words, "--out", str(tmp_path / "alone"), "--workers", "1").stdout.strip())
    before = set(worker_jobs(cluster))
    done = prepare(cluster, site, *words, "--out", str(tmp_path / "there"), "--executor", "slurm", "--workers", "2")
    assert done.returncode == 0, done.stderr
    there = Path(done.stdout.strip())
    assert there.name == alone.name
    assert {file.name: file.read_bytes() for file in there.iterdir()} == {
        file.name: file.read_bytes() for file in alone.iterdir()
    }
    assert len(set(worker_jobs(cluster)) - before) == 2
    wait_for(lambda: is_quiet(cluster), 60, "no job of the build is left")


def test_a_refused_build_leaves_no_job_behind(
    cluster: Cluster, site: Path, tiny_settings: RunSettings, tmp_path: Path
) -> None:
    assert tiny_settings.tokenizer.path is not None
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "글"}) + "\n" + json.dumps({"text": 5}) + "\n", encoding="utf-8")
    words = ("--input", str(bad), "--tokenizer", tiny_settings.tokenizer.path, "--out", str(tmp_path / "out"))
    done = prepare(cluster, site, *words, "--executor", "slurm", "--workers", "1")
    assert done.returncode == 2 and "bad.jsonl:2: field 'text' holds int" in done.stderr
    wait_for(lambda: is_quiet(cluster), 60, "no job of the build is left")
