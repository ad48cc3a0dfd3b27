"""What is wrong with a job, found before it waits in the queue for a day to fail in a second."""

import os
from pathlib import Path

import psutil

from configs.errors import BadInput
from launch.slurm_cluster import NodeKind, Partition, nodes_of, partitions, time_limit_seconds
from launch.slurm_request import Request

SHARED_FILE_SYSTEMS = (
    "nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "afs", "glusterfs", "panfs", "orangefs", "pvfs",
    "wekafs", "fuse", "virtiofs", "9p", "gfs2", "ocfs2", "exafs", "vast", "daos", "juicefs",
)  # fmt: skip


def check_request(request: Request) -> None:
    """What can be told without the cluster.

    Raises:
        BadInput: a number that makes no job, a batch that the ranks do not divide, or options that exclude each other.
    """
    options = request.options
    least = {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "cpus_per_rank": 1, "warning_seconds": 1}
    least |= {"retries": 0, "data_cpus": 1, "at_once": 1}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise BadInput(f"--{name} {value}: choose {smallest} or more")
    gpus, ranks = options.gpus_per_node, request.ranks_per_node
    if gpus and ranks > gpus:
        raise BadInput(
            f"--ranks_per_node {ranks}: more ranks than the {gpus} GPUs of --gpus_per_node; a rank has its own"
        )
    if options.at_once and options.until_done:
        raise BadInput(
            f"--at_once {options.at_once}: Slurm does not count the jobs that --until_done queues one by one, so more "
            "would train at the same time; leave out one of the two"
        )
    if sum(map(bool, (options.apptainer, options.pyxis))) > 1:
        raise BadInput("--apptainer and --pyxis: choose one container")
    if options.apptainer and "://" not in options.apptainer and not Path(options.apptainer).exists():
        raise BadInput(f"--apptainer {options.apptainer}: no such image")
    if options.venv and not (Path(options.venv) / "bin" / "activate").is_file():
        raise BadInput(f"--venv {options.venv}: no bin/activate there, so it is no virtual environment")
    if time_limit_seconds(options.time, "--time") <= options.warning_seconds:
        raise BadInput(
            f"--time {options.time} is no longer than --warning_seconds {options.warning_seconds}: the run would be "
            "told to stop before it begins"
        )
    time_limit_seconds(options.data_time, "--data_time")
    if options.data_job or options.grid:
        _ = request.pre_training
    _check_batch(request)


def _check_batch(request: Request) -> None:
    train = request.settings.train
    # An automatic micro-batch of any size divides what the ranks divide.
    micro_batch = train.micro_batch if isinstance(train.micro_batch, int) else 1
    together = micro_batch * request.ranks
    if together < 1 or train.global_batch < 1 or train.global_batch % together:
        raise BadInput(
            f"train.global_batch {train.global_batch} is no multiple of train.micro_batch {train.micro_batch} x "
            f"{request.ranks} ranks ({request.options.nodes} nodes x {request.ranks_per_node}) = {together}; "
            "change one of them"
        )


def check_cluster(request: Request) -> None:
    """What the cluster and the run folder's disk can tell.

    Raises:
        BadInput: a partition that is not there, more than its nodes have or its time allows, or a run folder that the
            nodes do not see.
    """
    options = request.options
    known = partitions()
    chosen = _partition(options.partition, known, "partition")
    _check_limit(chosen, options.time, "time")
    _check_nodes(request, chosen, nodes_of(chosen.name))
    if options.data_job:
        data = _partition(options.data_partition or options.partition, known, "data_partition")
        _check_limit(data, options.data_time, "data_time")
        most = max((node.cpus for node in nodes_of(data.name)), default=0)
        if options.data_cpus > most:
            raise BadInput(
                f"--data_cpus {options.data_cpus}: the nodes of partition {data.name} have at most {most} cores"
            )
    check_shared_disk(request)


def _partition(asked: str | None, known: list[Partition], option: str) -> Partition:
    names = ", ".join(partition.name for partition in known)
    for partition in known:
        if partition.name == asked or (asked is None and partition.is_default):
            return partition
    if asked is None:
        raise BadInput(f"this cluster has no default partition: choose one with --{option}: {names}")
    raise BadInput(f"--{option} {asked}: no such partition; there are: {names}")


def _check_limit(partition: Partition, limit: str, option: str) -> None:
    if partition.max_seconds is not None and time_limit_seconds(limit, f"--{option}") > partition.max_seconds:
        remedy = "ask for those, training goes on in the next allocation" if option == "time" else "ask for those"
        raise BadInput(
            f"--{option} {limit}: partition {partition.name} allows at most {partition.max_seconds // 60} minutes; "
            f"{remedy}"
        )


def _check_nodes(request: Request, partition: Partition, nodes: list[NodeKind]) -> None:
    options = request.options
    kind = options.gpu_type
    named = f"{kind} GPUs" if kind else "GPUs"
    if options.gpus_per_node:
        most = max((node.gpu_count(kind) for node in nodes), default=0)
        if options.gpus_per_node > most:
            kinds = sorted({name for node in nodes for name, _ in node.gpus if name})
            there = f" (kinds: {', '.join(kinds)})" if kinds else ""
            raise BadInput(
                f"--gpus_per_node {options.gpus_per_node}: a node of partition {partition.name} has at most {most} "
                f"{named}{there}; ask for fewer on more nodes"
            )
    cpus = request.ranks_per_node * (options.cpus_per_rank or 1)
    fitting = [node for node in nodes if node.gpu_count(kind) >= options.gpus_per_node and node.cpus >= cpus]
    if not fitting:
        raise BadInput(
            f"{request.ranks_per_node} ranks a node with {options.cpus_per_rank or 1} cores each: no node of partition "
            f"{partition.name} with {options.gpus_per_node} {named} has {cpus} cores; lower --cpus_per_rank"
        )
    if options.nodes > len(fitting):
        raise BadInput(
            f"--nodes {options.nodes}: only {len(fitting)} of the {len(nodes)} nodes of partition {partition.name} "
            f"have {options.gpus_per_node} {named} and {cpus} cores"
        )


def check_shared_disk(request: Request) -> None:
    """See that the nodes can see the run folder, as far as the kind of its file system tells.

    Raises:
        BadInput: they cannot.
    """
    if request.options.shared_disk is True:
        return
    kind, mount = file_system(request.run)
    if request.options.shared_disk is False or not kind.lower().startswith(SHARED_FILE_SYSTEMS):
        raise BadInput(
            f"{request.run}: lies on {mount} ({kind}), a disk of this machine that the nodes do not see; choose a "
            "--run on a shared disk, or --shared_disk true if they do see it"
        )


def file_system(path: Path) -> tuple[str, str]:
    """The kind of file system that `path` lies on, or will, and where it is mounted."""
    there = os.path.realpath(path)
    mounts = [part for part in psutil.disk_partitions(all=True) if _is_within(there, part.mountpoint)]
    # Of several mounts at one place the last hides the others.
    nearest = max(enumerate(mounts), key=lambda entry: (len(entry[1].mountpoint), entry[0]))[1]
    return nearest.fstype, nearest.mountpoint


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
