"""A real Slurm cluster on this machine: munged, slurmctld and one slurmd a node, all of them our own processes.

Debian's slurmd runs several nodes on one host. Where the kernel allows it, each node runs in its own UTS and mount
namespace, so that it has its own host name and its own view of the file systems.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.time_limits import seconds, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
SBIN = "/usr/sbin:/sbin"
GPUS_PER_NODE = 2
NODE_DOWN_SECONDS = 15
"""Seconds without contact after which the controller marks a node as down."""


class NoClusterError(Exception):
    """Why a cluster cannot be started on this machine."""


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def search_path() -> str:
    """PATH with sbin, which a plain user's often lacks."""
    return f"{os.environ.get('PATH', '')}:{SBIN}"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def wait_for(is_so: Callable[[], bool], base: float, what: str) -> None:
    """Check ten times a second until `is_so` returns true; see `wait_until`."""
    wait_until(is_so, base, what, pause=0.1)


@dataclass
class Cluster:
    """A cluster of `nodes` nodes named n1, n2, ... in partitions `main` and, of higher priority, `urgent`."""

    folder: Path
    nodes: int
    namespace: tuple[str, ...]
    """Words before a command that give it namespaces of its own; empty where the kernel allows none."""

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to this cluster and no other."""
        foreign = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": search_path()}

    def ask(self, *words: str, check: bool = True) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            words,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds(30),
            check=False,
            cwd=self.folder,
        )
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """The fields that `scontrol show job` gives."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, job: str, *states: str, base: float = 120) -> dict[str, str]:
        """The job's fields once it is in one of `states`."""
        seen = ""

        def is_there() -> bool:
            nonlocal seen
            seen = self.job(job)["JobState"]
            return seen in states

        try:
            wait_for(is_there, base, f"job {job} {' or '.join(states)}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {seen}: {self.ask('scontrol', 'show', 'job', job)}") from error
        return self.job(job)

    def pid(self, daemon: str) -> int:
        """The process of `slurmctld`, `munged`, or `slurmd.n1`."""
        return int((self.folder / f"{daemon}.pid").read_text(encoding="utf-8"))

    def kill(self, daemon: str) -> None:
        """SIGKILL to one daemon."""
        os.kill(self.pid(daemon), signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        self._run_as(name, "slurmd", "-N", name)

    def start(self) -> None:
        """Start every daemon and wait until the nodes are idle."""
        (self.folder / "state").mkdir(mode=0o700)
        for number in range(GPUS_PER_NODE):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        self._write_settings()
        munge = [f"--{name}={self.folder / file}" for name, file in _munge_files().items()]
        self._run("munged", "--force", "--num-threads=4", *munge)
        self._run_as(_own_name(), "slurmctld", "-i", "-c")
        for name in self.node_names:
            self.start_node(name)
        wait_for(self._all_idle, 30, f"{self.nodes} idle nodes; logs are in {self.folder}")

    def stop(self) -> None:
        """End all jobs, then every daemon that we started."""
        self.ask("scancel", "--full", f"--user={os.getuid()}", check=False)
        for _ in range(100):
            if not self.ask("squeue", "--noheader", check=False):
                break
            time.sleep(0.1)
        files = [
            self.folder / f"{name}.pid" for name in (*map("slurmd.{}".format, self.node_names), "slurmctld", "munged")
        ]
        pids = [int(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        for number in (signal.SIGTERM, signal.SIGKILL):
            pids = [pid for pid in pids if _send(pid, number)]
            end = time.monotonic() + seconds(15)
            while pids and time.monotonic() < end:
                time.sleep(0.05)
                pids = [pid for pid in pids if _send(pid, 0)]

    @property
    def node_names(self) -> list[str]:
        """n1, n2, ..."""
        return [f"n{number + 1}" for number in range(self.nodes)]

    def _all_idle(self) -> bool:
        idle = self.ask("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", check=False)
        return set(idle.split()) == set(self.node_names)

    def _run(self, *words: str) -> None:
        out = self.folder / f"{words[0]}.out"
        with out.open("ab") as log:
            done = subprocess.run(
                words,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=seconds(30),
                check=False,
            )
        if done.returncode != 0:
            raise NoClusterError(f"{words[0]} did not start: {out.read_text(encoding='utf-8')[-2000:]}")

    def _run_as(self, host: str, *words: str) -> None:
        if not self.namespace:
            self._run(*words)
            return
        enter = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        self._run(*self.namespace, "bash", "-c", enter, "_", str(self.folder / "hosts"), host, *words)

    def _write_settings(self) -> None:
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        own, (controller, *node_ports) = _own_name(), free_ports(self.nodes + 1)
        others = [
            line
            for line in Path("/etc/hosts").read_text(encoding="utf-8").splitlines()
            if not line.startswith("127.0.0.1")
        ]
        names = " ".join(["localhost", own, *self.node_names])
        (self.folder / "hosts").write_text("\n".join([f"127.0.0.1 {names}", *others]) + "\n", encoding="utf-8")
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        at = self.folder
        settings = {
            "ClusterName": "malmoi",
            "SlurmctldHost": f"{own}(127.0.0.1)",
            "SlurmctldPort": controller,
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            # How soon a requeued job starts again follows the credential's life.
            "AuthInfo": f"socket={at / 'munge.socket'},cred_expire=5",
            "CredType": "cred/munge",
            "StateSaveLocation": at / "state",
            "SlurmdSpoolDir": at / "spool" / "%n",
            "SlurmctldPidFile": at / "slurmctld.pid",
            "SlurmdPidFile": at / "slurmd.%n.pid",
            "SlurmctldLogFile": at / "slurmctld.log",
            "SlurmdLogFile": at / "slurmd.%n.log",
            "MailProg": "/bin/true",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "JobCompType": "jobcomp/none",
            "ReturnToService": 2,
            "SlurmdParameters": "config_overrides",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "MinJobAge": 3600,
            "KillWait": 10,
            "SlurmdTimeout": NODE_DOWN_SECONDS,
            "SlurmctldTimeout": 30,
            "MessageTimeout": 20,
            "JobRequeue": 1,
            "PropagateResourceLimits": "NONE",
            "GresTypes": "gpu",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        if socket.gethostbyname(own) == "127.0.0.1":
            lines.append("CommunicationParameters=NoCtldInAddrAny,NoInAddrAny")
        for name, port in zip(self.node_names, node_ports, strict=True):
            lines.append(
                f"NodeName={name} NodeHostname={own} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=8000 "
                f"Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN"
            )
        lines += [
            "PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 PriorityTier=1 GraceTime=30",
            "PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF",
        ]
        (at / "slurm.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        nodes = f"n[1-{self.nodes}]"
        (at / "gres.conf").write_text(
            f"NodeName={nodes} Name=gpu File={at}/gpu[0-{GPUS_PER_NODE - 1}]\n", encoding="utf-8"
        )
        (at / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\n", encoding="utf-8"
        )


def _munge_files() -> dict[str, str]:
    return {
        "key-file": "munge.key",
        "socket": "munge.socket",
        "pid-file": "munged.pid",
        "log-file": "munged.log",
        "seed-file": "munge.seed",
    }


def _own_name() -> str:
    return socket.gethostname().split(".")[0]


def _send(pid: int, number: int) -> bool:
    """Send a signal; false where the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def own_namespaces() -> tuple[str, ...]:
    """Words that run a command in namespaces of its own, or none where that is not allowed."""
    words = ["unshare", "--mount", "--uts", "--propagation", "private"]
    if os.getuid() != 0:
        words[1:1] = ["--user", "--map-current-user", "--keep-caps"]
    done = subprocess.run([*words, "true"], capture_output=True, check=False)
    return tuple(words) if done.returncode == 0 else ()


@contextmanager
def running_cluster(nodes: int) -> Iterator[Cluster]:
    """A cluster for the block.

    Raises:
        NoClusterError: its programs are not installed, or its daemons do not start.
    """
    if missing := missing_programs():
        raise NoClusterError(f"no {', '.join(missing)}: apt-get install -y slurm-wlm munge")
    # munge takes no socket whose path is longer than 108 characters, which pytest's own folders may be.
    folder = Path(tempfile.mkdtemp(prefix="malmoi-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = Cluster(folder, nodes, own_namespaces())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
