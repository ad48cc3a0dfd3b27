"""Runs on the cluster, submitted as a user submits them."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launch.cluster.cluster import Cluster, wait_for
from tests.launching import environment
from tests.time_limits import seconds

MALMOI = "import sys; from malmoi.launch.cli import main; sys.exit(main())"
ON_CPUS = ("--gpus_per_node", "0", "--shared_filesystem", "true", "--time", "10", "--signal_lead_seconds", "60")


def malmoi_slurm(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `malmoi slurm ...` so that jobs go to the test cluster."""
    return subprocess.run(
        [sys.executable, "-c", MALMOI, "slurm", *words],
        env={**environment(), **cluster.environment, **_launching()},
        capture_output=True,
        text=True,
        timeout=seconds(60),
        check=False,
    )


def _launching() -> dict[str, str]:
    own = environment()
    return {name: own[name] for name in ("OMP_NUM_THREADS", "PYTHONPATH", "TOKENIZERS_PARALLELISM")}


@dataclass(frozen=True)
class SubmittedRun:
    """A submitted run, and what its jobs write."""

    cluster: Cluster
    folder: Path
    job: str
    printed: str
    """What `malmoi slurm submit` printed."""

    def log(self, job: str | None = None) -> str:
        """The job's log so far."""
        file = self.folder / "slurm" / f"job-{job or self.job}.log"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def rank_logs(self) -> str:
        """The logs of all ranks of all starts."""
        return "\n".join(
            f"{file}:\n{file.read_text(encoding='utf-8')}" for file in sorted(self.folder.glob("slurm/*/rank-*.log"))
        )

    def starts(self) -> list[str]:
        """The lines that the job script writes, one a start."""
        file = self.folder / "slurm" / "starts"
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []

    def steps(self) -> list[dict[str, Any]]:
        """The logged steps."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}") and '"train/loss"' in line]

    def losses(self) -> list[float]:
        """The losses of all logged steps."""
        return [line["train/loss"] for line in self.steps()]

    def newest_checkpoint(self) -> int:
        """Its step; 0 for none."""
        return max((int(folder.name[5:]) for folder in self.folder.glob("checkpoints/step-*")), default=0)

    def wait_for_step(self, step: int, base: float = 90) -> None:
        """Wait until training has logged `step`."""
        wait_for(lambda: len(self.steps()) >= step, base, f"step {step} of {self.folder}\n{self.log()}")

    def wait_for_end(self, *states: str, base: float = 150) -> dict[str, str]:
        """The job's fields once it has ended in one of `states`."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        fields = self.cluster.wait_for_state(self.job, *ends, base=base)
        assert fields["JobState"] in states, f"{fields['JobState']}\n{self.log()}\n{self.rank_logs()}"
        return fields


def submit(cluster: Cluster, config: Path, folder: Path, *words: str, subcommand: str = "submit") -> SubmittedRun:
    """Submit the run of `config` in `folder`."""
    done = malmoi_slurm(cluster, subcommand, "--config", str(config), "--run", str(folder), *ON_CPUS, *words)
    assert done.returncode == 0, done.stderr
    first = done.stdout.split()[1].rstrip(":")
    return SubmittedRun(cluster, folder, first, done.stdout)
