"""Checks of a job before it is submitted: it must not wait a day in the queue and then fail in a second."""

import os
from pathlib import Path

import psutil

from malmoi.configs.run import RunSettings
from malmoi.errors import UserError, require_options
from malmoi.launch.slurm.cluster import Node, Partition, nodes_of, partitions, time_limit_seconds
from malmoi.launch.slurm.request import Request
from malmoi.ranks import counted_ranks

SHARED_FILE_SYSTEMS = (
    "nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "afs", "glusterfs", "panfs", "orangefs", "pvfs",
    "wekafs", "fuse", "virtiofs", "9p", "gfs2", "ocfs2", "exafs", "vast", "daos", "juicefs",
)  # fmt: skip


def check_request(request: Request) -> None:
    """Check what does not need the cluster.

    Raises:
        UserError: options exclude each other, a path does not exist, or the ranks do not divide the batch.
    """
    options = request.options
    gpus, ranks = options.gpus_per_node, request.ranks_per_node
    if gpus and ranks > gpus:
        raise UserError(
            f"--ranks_per_node {ranks}: more ranks than the {gpus} GPUs of --gpus_per_node; each rank needs a GPU"
        )
    if options.max_concurrent and options.chain:
        raise UserError(
            f"--max_concurrent {options.max_concurrent}: Slurm does not apply the limit to jobs that --chain queues "
            "one by one, so more would train at the same time; leave out one of the two"
        )
    if options.apptainer and options.pyxis:
        raise UserError("--apptainer and --pyxis: choose one container")
    if options.apptainer and "://" not in options.apptainer and not Path(options.apptainer).exists():
        raise UserError(f"--apptainer {options.apptainer}: no such image")
    if options.venv and not (Path(options.venv) / "bin" / "activate").is_file():
        raise UserError(f"--venv {options.venv}: not a virtual environment, since it has no bin/activate")
    if time_limit_seconds(options.time, "--time") <= options.signal_lead_seconds:
        raise UserError(
            f"--time {options.time} is no longer than --signal_lead_seconds {options.signal_lead_seconds}: the run "
            "would be signaled to stop before it starts; raise --time"
        )
    time_limit_seconds(options.data_time, "--data_time")
    if options.data_job or options.grid:
        _ = request.pre_training
    _check_batch(request)


def _check_batch(request: Request) -> None:
    train = request.settings.train
    # An automatic micro-batch adapts to whatever share of the batch a rank has.
    micro_batch_size = train.micro_batch_size if isinstance(train.micro_batch_size, int) else 1
    samples, nodes = micro_batch_size * request.ranks, request.options.nodes
    if train.global_batch_size % samples:
        raise UserError(
            f"train.global_batch_size {train.global_batch_size} is no multiple of train.micro_batch_size "
            f"{train.micro_batch_size} x {counted_ranks(request.ranks)} ({nodes} node{'' if nodes == 1 else 's'} x "
            f"{request.ranks_per_node}) = {samples}; change one of them"
        )


def check_data_is_named(request: Request) -> None:
    """Check that the job has text, or labeled examples and a model, to train on.

    Raises:
        UserError: the settings name none.
    """
    settings = request.settings
    if isinstance(settings, RunSettings):
        if not settings.corpus.input and not settings.corpus.sources:
            raise UserError("corpus.input is empty: name the text to train on, such as --corpus.input '[my_text]'")
    else:
        named = {"init_from": bool(settings.init_from), "task.train": bool(settings.task.train)}
        require_options("slurm submit --finetune", **named)


def check_cluster(request: Request) -> None:
    """Check the request against the cluster's partitions and nodes, and the run folder's file system.

    Raises:
        UserError: there is no such partition, its nodes or time limit do not suffice, or the nodes cannot see the run
            folder.
    """
    options = request.options
    known = partitions()
    chosen = _chosen_partition(options.partition, known, "partition")
    _check_limit(chosen, options.time, "time")
    _check_nodes(request, chosen, nodes_of(chosen.name))
    if options.data_job:
        data = _chosen_partition(options.data_partition or options.partition, known, "data_partition")
        _check_limit(data, options.data_time, "data_time")
        most = max((node.cpus for node in nodes_of(data.name)), default=0)
        if options.data_cpus > most:
            raise UserError(
                f"--data_cpus {options.data_cpus}: the nodes of partition {data.name} have at most {most} cores"
            )
    check_shared_filesystem(request)


def _chosen_partition(asked: str | None, known: list[Partition], option: str) -> Partition:
    names = ", ".join(partition.name for partition in known)
    for partition in known:
        if partition.name == asked or (asked is None and partition.is_default):
            return partition
    if asked is None:
        raise UserError(f"this cluster has no default partition; choose one with --{option}: {names}")
    raise UserError(f"--{option} {asked}: no such partition; there are: {names}")


def _check_limit(partition: Partition, limit: str, option: str) -> None:
    if partition.max_seconds is not None and time_limit_seconds(limit, f"--{option}") > partition.max_seconds:
        remedy = "ask for that, training resumes in the next allocation" if option == "time" else "ask for that"
        raise UserError(
            f"--{option} {limit}: partition {partition.name} allows at most {partition.max_seconds // 60} minutes; "
            f"{remedy}"
        )


def _check_nodes(request: Request, partition: Partition, nodes: list[Node]) -> None:
    options = request.options
    gpu_type = options.gpu_type
    named = f"{gpu_type} GPUs" if gpu_type else "GPUs"
    if options.gpus_per_node:
        most = max((node.gpu_count(gpu_type) for node in nodes), default=0)
        if options.gpus_per_node > most:
            types = sorted({name for node in nodes for name, _ in node.gpus if name})
            available = f" (types: {', '.join(types)})" if types else ""
            raise UserError(
                f"--gpus_per_node {options.gpus_per_node}: a node of partition {partition.name} has at most {most} "
                f"{named}{available}; ask for fewer on more nodes"
            )
    cpus = request.ranks_per_node * (options.cpus_per_rank or 1)
    fitting = [node for node in nodes if node.gpu_count(gpu_type) >= options.gpus_per_node and node.cpus >= cpus]
    if not fitting:
        raise UserError(
            f"{request.ranks_per_node} ranks a node with {options.cpus_per_rank or 1} cores each: no node of partition "
            f"{partition.name} with {options.gpus_per_node} {named} has {cpus} cores; lower --cpus_per_rank"
        )
    if options.nodes > len(fitting):
        raise UserError(
            f"--nodes {options.nodes}: only {len(fitting)} of the {len(nodes)} nodes of partition {partition.name} "
            f"have {options.gpus_per_node} {named} and {cpus} cores"
        )


def check_shared_filesystem(request: Request) -> None:
    """Check that the nodes can see the run folder and the checkpoints, judged by their file system type.

    Raises:
        UserError: they cannot.
    """
    if request.options.shared_filesystem is True:
        return
    for path, setting in ((request.run, "--run"), (request.checkpoint_folder, "--checkpoint.dir")):
        if not isinstance(path, Path):
            continue
        kind, mount = file_system(path)
        if request.options.shared_filesystem is False or not kind.lower().startswith(SHARED_FILE_SYSTEMS):
            raise UserError(
                f"{path}: is on {mount} ({kind}), a local disk that other nodes cannot see; choose a {setting} on a "
                "shared file system, or pass --shared_filesystem true if they can see it"
            )


def file_system(path: Path) -> tuple[str, str]:
    """Return the type and the mount point of the file system that holds `path`, which need not exist yet."""
    resolved = os.path.realpath(path)
    mounts = [part for part in psutil.disk_partitions(all=True) if _is_within(resolved, part.mountpoint)]
    # Of several mounts at one place the last hides the others.
    nearest = max(enumerate(mounts), key=lambda entry: (len(entry[1].mountpoint), entry[0]))[1]
    return nearest.fstype, nearest.mountpoint


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
