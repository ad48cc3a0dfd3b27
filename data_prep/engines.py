"""Where the encoding runs: processes of this machine, a Dask cluster, or jobs on Slurm. All are Executors."""

import fcntl
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from configs.errors import BadInput, one_line
from configs.schema import ShardSettings
from data_prep.heartbeat import start_of
from data_prep.work import begin_worker

log = logging.getLogger(__name__)

SMALL_BYTES = 3_000_000
"""Input, as stored, under which starting processes takes longer than the work."""


@dataclass(frozen=True)
class Engine:
    """An executor and how many chunks to give it."""

    executor: Executor
    window: Callable[[], int]
    """Chunks to have in flight, now: a cluster's workers come and go."""


class InlineExecutor(Executor):
    """Runs each call at once, in this process."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def usable_cores() -> int:
    """Cores that this process may run on, which under Slurm or in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_engine(data: ShardSettings, input_bytes: int) -> Iterator[Engine]:
    """The engine that the settings ask for, for an input of so many bytes as stored.

    Raises:
        BadInput: what the engine needs is not installed, not named, or not there.
    """
    if data.engine == "dask":
        if data.scheduler is None:
            raise BadInput("data.engine dask needs the scheduler's address: set data.scheduler, as tcp://HOST:8786")
        with _dask_client(data.scheduler) as client:
            yield _on_dask(client)
    elif data.engine == "slurm":
        with _slurm_cluster(data.workers or 1) as cluster, _dask_client(cluster) as client:
            yield _on_dask(client)
    else:
        workers = data.workers if data.workers is not None else usable_cores()
        if workers < 1:
            raise BadInput(f"data.workers {workers}: choose 1 or more, or leave it out for one a core")
        if workers == 1 or (data.workers is None and input_bytes < SMALL_BYTES):
            yield Engine(InlineExecutor(), lambda: 1)
        else:
            yield from _local(workers)


def _local(workers: int) -> Iterator[Engine]:
    # Never forked from this process: a fork after the tokenizer has used its threads can deadlock (tokenizers #187).
    # The fork server has no threads, and imports once what all workers need.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.work", "data_prep.fast_encode"])
    executor = ProcessPoolExecutor(
        workers, context, initializer=begin_worker, initargs=(os.getpid(), start_of(os.getpid()))
    )
    # All workers at the first task: one that starts while the pool ends for another's death would be waited for without
    # end, since it starts too late to be told.
    executor._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]  # typeshed does not know it
    _widen(executor._result_queue)
    try:
        yield Engine(executor, lambda: workers + 2)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _widen(queue: Any) -> None:
    """Let a pipe of multiprocessing's hold a megabyte, where the system knows how: fewer turns for large results."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # the user's share of pipe memory is used up: the pipe stays as it is
            fcntl.fcntl(queue._writer.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)


@contextmanager
def _dask_client(address: Any) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise BadInput("data.engine dask needs dask.distributed: run `pip install malmoi[dask]`") from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"data.scheduler {address}: cannot be reached ({one_line(error)}); start it with `dask scheduler`"
        ) from error
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _slurm_cluster(jobs: int) -> Iterator[Any]:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise BadInput("data.engine slurm needs dask-jobqueue: run `pip install malmoi[dask]`") from error
    try:
        # Queue, account, cores and memory are the site's: they stand in dask-jobqueue's own configuration.
        cluster = SLURMCluster()
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"data.engine slurm: set cores and memory in ~/.config/dask/jobqueue.yaml ({one_line(error)})"
        ) from error
    try:
        cluster.scale(jobs=jobs)
        log.info("%d jobs asked of Slurm; encoding begins with the first that starts", jobs)
        yield cluster
    finally:
        cluster.close()


def _on_dask(client: Any) -> Engine:
    # Not pure: the same chunk of a file that has changed must be read again.
    return Engine(client.get_executor(pure=False), lambda: max(4, 2 * sum(client.nthreads().values())))
