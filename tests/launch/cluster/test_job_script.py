"""The job script on a real cluster, with ranks of a few lines of bash: signals, requeues, failures, ports."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.launch.slurm.script import TRAIN_TEMPLATE
from tests.launch.cluster.cluster import Cluster, wait_for
from tests.launch.cluster.runs import ON_CPUS, SubmittedRun, malmoi_slurm, submit

RankOf = Callable[..., tuple[str, str]]
RANK = """
# Counts to LAST, ten a second, from its newest checkpoint; saves and stops when it is asked to.
run=$1 checkpoints=$2 last=$3 kind=$4
step=$(find "$checkpoints" -name 'step-*' | sed 's/.*step-0*//' | sort -n | tail -n 1)
step=${step:-0}
save() {
  if [ "$kind$RANK" = slow0 ]; then sleep 2; fi
  if ((RANK == 0)); then mkdir -p "$checkpoints/step-$(printf %06d "$step")"; fi
}
repeat() { for _ in {1..99999}; do kill -USR1 0; done; }
case $kind in
  counts|slow) trap 'save; exit 75' USR1 TERM ;;
  repeats) trap 'save; trap "" USR1 TERM; repeat & sleep 0.1; exit 75' USR1 TERM ;;
  ignores_signals) trap '' USR1 TERM ;;
  fails_on) trap '' USR1 TERM; step=$((step + 1)); if ((step < last)); then save; exit 1; fi ;;
  logs) step=$(($(wc -l < "$run/metrics.jsonl" 2> /dev/null || echo 0) + 1))
    if ((step <= last)); then echo "{\\"step\\": $step, \\"train/loss\\": 1.0}" >> "$run/metrics.jsonl"; fi; exit 1 ;;
  fails) echo 'no such device' >&2; exit 1 ;;
esac
while ((step < last)); do sleep 0.1; step=$((step + 1)); mkdir -p "$checkpoints"; done
save
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = RunSettings(
        corpus=CorpusSettings(input=("here.txt",)),
        train=TrainSettings(global_batch_size=8, micro_batch_size=4, max_steps=1),
    )
    file = tmp_path_factory.mktemp("config") / "settings.yaml"
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def rank_of(tmp_path_factory: pytest.TempPathFactory) -> RankOf:
    folder = tmp_path_factory.mktemp("templates")
    (folder / "rank.sh").write_text(RANK, encoding="utf-8")

    def template(last: int, kind: str = "counts", path: Path | None = None) -> tuple[str, str]:
        """Words that have `malmoi slurm submit` train by the rank above; `path` comes before all others for the job."""
        file = folder / f"{kind}-{last}-{path.name if path else ''}.sh"
        text, command = TRAIN_TEMPLATE.read_text(encoding="utf-8"), "command=(@@{command})"
        assert text.count(command) == 1
        programs = f"PATH={path}:$PATH\n" if path else ""
        file.write_text(
            text.replace(command, f'{programs}command=(bash {folder}/rank.sh "$run" "$checkpoints" {last} {kind})')
        )
        return ("--template", str(file))

    return template


@pytest.fixture(scope="module")
def signaled_by_slurm(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SubmittedRun]:
    """A job with a time limit of one minute that needs more, submitted before the other tests, since it takes long."""
    words = ("--time", "1", "--signal_lead_seconds", "30", "--sbatch", "nodelist=n1")
    yield submit(cluster, config, tmp_path_factory.mktemp("clock") / "run", *rank_of(400), *words)


def test_a_preempted_job_saves_in_its_grace_period_and_is_requeued(
    cluster: Cluster, config: Path, rank_of: RankOf, signaled_by_slurm: SubmittedRun, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(100), "--sbatch", "nodelist=n2")
    wait_for(lambda: len(run.starts()) == 1 and (run.folder / "checkpoints").exists(), 30, run.log())
    urgent = ("--partition=urgent", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2")
    cluster.ask("sbatch", *urgent)
    fields = run.wait_for_end("COMPLETED")
    assert fields["Restarts"] == "1", run.log()
    saved = int(run.starts()[1].split()[2])
    assert 0 < saved < 100
    assert f"requeueing job {run.job}, to resume from step {saved}" in run.log()
    assert "canceled:" not in run.log()


def test_of_an_array_only_the_task_that_was_signaled_is_requeued(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    grid = ("--grid", "train.seed=1,2")
    sweep = submit(cluster, config, tmp_path / "sweep", *rank_of(100), *grid, subcommand="sweep")
    starts = [tmp_path / "sweep" / name / "slurm" / "starts" for name in ("000", "001")]
    wait_for(lambda: all(file.is_file() for file in starts), 30, "both tasks started")
    wait_for(lambda: all((file.parents[1] / "checkpoints").exists() for file in starts), 30, "both tasks count")
    cluster.ask("scancel", "--batch", "--signal=USR1", f"{sweep.job}_1")
    restarts = [cluster.wait_for_state(f"{sweep.job}_{task}", "COMPLETED")["Restarts"] for task in (0, 1)]
    assert restarts == ["0", "1"]
    assert [len(file.read_text(encoding="utf-8").splitlines()) for file in starts] == [1, 2]


def test_a_port_that_something_listens_on_is_skipped(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    first = submit(cluster, config, tmp_path / "first", *rank_of(1))
    first.wait_for_end("COMPLETED")
    taken = 12000 + (int(first.job) + 1) % 20000
    with socket.create_server(("127.0.0.1", taken)):
        second = submit(cluster, config, tmp_path / "second", *rank_of(1))
        assert int(second.job) == int(first.job) + 1
        second.wait_for_end("COMPLETED")
    assert f"rendezvous n1:{taken - 1}," in first.log()
    assert f"rendezvous n1:{taken + 1}," in second.log()


def test_a_port_that_another_job_has_locked_is_skipped(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    first = submit(cluster, config, tmp_path / "first", *rank_of(1))
    first.wait_for_end("COMPLETED")
    taken = 12000 + (int(first.job) + 1) % 20000
    holder = subprocess.Popen(["flock", "--no-fork", f"/tmp/malmoi-port-{taken}.lock", "sleep", "60"])
    try:
        second = submit(cluster, config, tmp_path / "second", *rank_of(1))
        second.wait_for_end("COMPLETED")
    finally:
        holder.terminate()
        holder.wait()
    assert f"rendezvous n1:{taken + 1}," in second.log()


def test_a_port_lock_that_is_a_symlink_leaves_its_target_unchanged(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    first = submit(cluster, config, tmp_path / "first", *rank_of(1))
    first.wait_for_end("COMPLETED")
    mine = tmp_path / "mine"
    mine.write_text("precious\n", encoding="utf-8")
    lock = Path(f"/tmp/malmoi-port-{12000 + (int(first.job) + 1) % 20000}.lock")
    lock.unlink(missing_ok=True)
    lock.symlink_to(mine)
    try:
        second = submit(cluster, config, tmp_path / "second", *rank_of(1))
        assert int(second.job) == int(first.job) + 1
        second.wait_for_end("COMPLETED")
    finally:
        lock.unlink()
    assert mine.read_text(encoding="utf-8") == "precious\n"


def test_a_job_that_can_lock_no_port_says_so_and_ends_with_its_chain(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "flock").symlink_to("/bin/false")
    run = submit(cluster, config, tmp_path / "run", *rank_of(1, path=programs), "--chain")
    assert run.wait_for_end("FAILED")["ExitCode"] == "1:0"
    assert re.search(r"could not lock any of 200 ports up to \d+ on n\d", run.log())
    assert not list(run.folder.glob("slurm/*/rank-*.log")), "no rank was started"
    cluster.wait_for_state(run.starts()[0].split()[5], "CANCELLED", base=30)


def test_while_a_job_of_the_run_is_pending_or_running_no_other_is_queued_and_a_canceled_chain_leaves_none(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(300, "ignores_signals"), "--chain")
    wait_for(lambda: (run.folder / "checkpoints").exists(), 30, "the rank counts")
    again = malmoi_slurm(cluster, "submit", "--config", str(config), "--run", str(run.folder), *ON_CPUS)
    assert again.returncode == 2 and f"job {run.job} of this run is running; wait for it" in again.stderr
    next_job = run.starts()[0].split()[5]
    assert cluster.job(next_job)["Dependency"].startswith(f"afterany:{run.job}")
    cluster.ask("scancel", run.job)
    cluster.wait_for_state(next_job, "CANCELLED", base=30)
    assert len(run.starts()) == 1


def test_a_job_whose_ranks_are_still_ending_keeps_others_out_of_its_folder(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(300, "ignores_signals"))
    wait_for(lambda: (run.folder / "checkpoints").exists(), 30, "the rank counts")
    cluster.ask("scancel", run.job)
    wait_for(lambda: cluster.job(run.job)["JobState"] == "COMPLETING", 30, "the rank ignores signals")
    again = malmoi_slurm(cluster, "submit", "--config", str(config), "--run", str(run.folder), *ON_CPUS)
    assert again.returncode == 2 and f"job {run.job} of this run is completing; wait for it" in again.stderr
    run.wait_for_end("CANCELLED")


def test_failures_after_new_checkpoints_are_restarted(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(3, "fails_on"), "--retries", "0")
    assert run.wait_for_end("COMPLETED")["Restarts"] == "2"
    assert [line.split()[2] for line in run.starts()] == ["0", "1", "2"]


def test_progress_is_counted_where_the_checkpoints_are(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    """Also of a remote store, by the steps that the run logs."""
    elsewhere = ("--retries", "0", "--checkpoint.dir", str(tmp_path / "elsewhere"))
    run = submit(cluster, config, tmp_path / "run", *rank_of(2, "fails_on"), *elsewhere)
    assert run.wait_for_end("COMPLETED")["Restarts"] == "1"
    assert [line.split()[2] for line in run.starts()] == ["0", "1"]
    remote = ("--retries", "0", "--checkpoint.dir", "s3://bucket/run")
    run = submit(cluster, config, tmp_path / "remote", *rank_of(1, "logs"), *remote)
    assert run.wait_for_end("FAILED")["Restarts"] == "1"
    assert [line.split()[2] for line in run.starts()] == ["0", "1"]
    assert "made no progress after step 1" in run.log()


def test_failures_without_new_checkpoints_end_after_the_retries_with_the_ranks_error(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(3, "fails"), "--retries", "1")
    fields = run.wait_for_end("FAILED")
    assert (fields["Restarts"], fields["ExitCode"]) == ("1", "1:0")
    assert run.log().count("no such device") == 2
    assert "2 consecutive starts made no progress after step 0" in run.log()


def test_a_start_that_was_killed_while_writing_its_line_does_not_damage_others(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(1))
    run.wait_for_end("COMPLETED")
    with (run.folder / "slurm" / "starts").open("a") as file:
        file.write(f"{run.job} 0 0")
    again = submit(cluster, config, run.folder, *rank_of(1))
    again.wait_for_end("COMPLETED")
    assert [line.split()[0] for line in run.starts()] == [run.job, again.job]
    assert malmoi_slurm(cluster, "status", str(run.folder)).returncode == 0


def test_a_rank_that_has_stopped_does_not_end_another_that_still_saves(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(100, "slow"), "--ranks_per_node", "2", "--retries", "0")
    wait_for(lambda: (run.folder / "checkpoints").exists(), 30, "the ranks count")
    cluster.ask("scancel", "--batch", "--signal=USR1", run.job)
    assert run.wait_for_end("COMPLETED")["Restarts"] == "1"
    assert int(run.starts()[1].split()[2]) > 0
    assert "Terminating" not in run.log(), "Slurm ends what is left of a step whose task failed"


def test_a_job_that_was_canceled_saves_and_is_not_requeued(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(300))
    wait_for(lambda: (run.folder / "checkpoints").exists(), 30, "the rank counts")
    cluster.ask("scancel", run.job)
    assert run.wait_for_end("CANCELLED")["Restarts"] == "0"
    wait_for(lambda: "canceled: submit again to resume from step" in run.log(), 30, "the end of the job's log")
    assert list(run.folder.glob("checkpoints/step-*"))


def test_stop_signals_that_arrive_while_a_rank_exits_do_not_lose_that_it_stopped(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    run = submit(cluster, config, tmp_path / "run", *rank_of(300, "repeats"))
    wait_for(lambda: (run.folder / "checkpoints").exists(), 30, "the rank counts")
    cluster.ask("scancel", run.job)
    run.wait_for_end("CANCELLED")
    wait_for(lambda: "canceled: submit again to resume from step" in run.log(), 30, "the end of the job's log")
    assert list(run.folder.glob("slurm/*/stopped"))


BUSY_SCONTROL = """#!/bin/bash
# Stands in for a controller that does not answer the first two queries of a job.
if [[ $* == *"show job"* ]] && (($(wc -l < {asked}) < 2)); then
  echo "$*" >> {asked}
  exit 1
fi
exec {scontrol} "$@"
"""


def test_a_job_that_was_canceled_while_the_controller_does_not_answer_is_not_requeued(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    asked, programs = tmp_path / "asked", tmp_path / "programs"
    asked.touch()
    programs.mkdir()
    (programs / "scontrol").write_text(
        BUSY_SCONTROL.format(asked=asked, scontrol=shutil.which("scontrol")), encoding="utf-8"
    )
    (programs / "scontrol").chmod(0o755)
    run = submit(cluster, config, tmp_path / "run", *rank_of(300, path=programs))
    wait_for(lambda: (run.folder / "checkpoints").exists(), 30, "the rank counts")
    cluster.ask("scancel", run.job)
    assert run.wait_for_end("CANCELLED")["Restarts"] == "0"
    wait_for(lambda: "canceled: submit again to resume from step" in run.log(), 30, "the end of the job's log")
    assert asked.read_text(encoding="utf-8").count("show job") == 2
    assert "requeueing" not in run.log()


def test_ranks_that_do_not_stop_when_asked_are_requeued_before_the_time_limit(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    words = (*rank_of(600, "ignores_signals"), "--signal_lead_seconds", "4", "--retries", "1")
    run = submit(cluster, config, tmp_path / "run", *words)
    wait_for(lambda: (run.folder / "checkpoints").exists(), 30, run.log())
    cluster.ask("scancel", "--batch", "--signal=USR1", run.job)
    wait_for(lambda: cluster.job(run.job)["Restarts"] == "1", 30, run.log())
    assert "did not stop in time" in run.log()
    cluster.ask("scancel", run.job)


def test_a_run_folder_that_one_node_does_not_see_is_reported_and_not_requeued(
    cluster: Cluster, config: Path, rank_of: RankOf, tmp_path: Path
) -> None:
    if not cluster.namespace or os.getuid() != 0:
        pytest.skip("nodes have no view of the disks of their own here")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    enter = ("nsenter", f"--target={cluster.pid('slurmd.n2')}", "--mount")
    subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(hidden)], check=True)
    try:
        run = submit(cluster, config, hidden / "run", *rank_of(3), "--nodes", "2")
        assert run.wait_for_end("FAILED")["ExitCode"] == "2:0"
        assert "is not visible on every node" in run.log()
    finally:
        subprocess.run([*enter, "umount", str(hidden)], check=True)


def test_slurm_signals_a_job_before_its_time_limit_which_saves_and_is_requeued(signaled_by_slurm: SubmittedRun) -> None:
    fields = signaled_by_slurm.wait_for_end("COMPLETED")
    assert int(fields["Restarts"]) >= 1
    saved = int(signaled_by_slurm.starts()[1].split()[2])
    assert 0 < saved < 1000
    assert "received SIGUSR1: asking the ranks to save" in signaled_by_slurm.log()
    # The timer ends with the job that set it: the process that it would signal may be another's by then.
    scripts = re.compile(rf"job0*{signaled_by_slurm.job}/slurm_script")
    left = [name for file in Path("/proc").glob("[0-9]*/cmdline") if scripts.search(name := _text_of(file))]
    assert left == []


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""  # it has ended meanwhile
