"""Where the encoding runs: processes of this machine, a Dask cluster, or jobs on Slurm. `EXECUTORS` holds each."""

import fcntl
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from malmoi.configs.data import ShardSettings
from malmoi.data_prep.pipeline.heartbeat import start_of
from malmoi.errors import UserError, one_line
from malmoi.registry import Registry, registry_entry

log = logging.getLogger(__name__)

SMALL_BYTES = 3_000_000
"""Input, as stored, under which starting processes takes longer than the work."""
PARENT_CHECK_SECONDS = 0.5
PRELOADED = ("malmoi.data_prep.pipeline.encode_chunk", "malmoi.data_prep.tokenizer.fast_encode")
"""What every worker of this machine needs, imported once for all."""


@dataclass(frozen=True)
class Workers:
    """An executor, open, and how many chunks to give it."""

    executor: Executor
    window: Callable[[], int]
    """Returns the chunks to have in flight now: a cluster's workers come and go."""


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
    """Return the cores that this process may run on: under Slurm or in a container, fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _local(data: ShardSettings, input_bytes: int) -> Iterator[Workers]:
    """Open `data.workers` processes of this machine; for one, or little input, none but this one."""
    workers = data.workers if data.workers is not None else usable_cores()
    if workers == 1 or (data.workers is None and input_bytes < SMALL_BYTES):
        yield Workers(InlineExecutor(), lambda: 1)
        return
    # Never forked from this process: a fork after the tokenizer has used its threads can deadlock (tokenizers #187).
    # The fork server has no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    executor = ProcessPoolExecutor(
        workers, context, initializer=_begin_worker, initargs=(os.getpid(), start_of(os.getpid()))
    )
    # All workers at the first task: one that starts while the pool ends for another's death would be waited for without
    # end, since it starts too late to be stopped.
    executor._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]  # typeshed does not know it
    _widen(executor._result_queue)
    try:
        yield Workers(executor, lambda: workers + 2)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin_worker(builder: int, started: str | None) -> None:
    """Set up a worker process: one thread of its own, and an end when the builder ends, even by SIGKILL.

    Args:
        builder: its process id.
        started: its `start_of`, so that a process id used again is told apart.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def end_with_builder() -> None:
        # Not the parent's end: the parent is a fork server, which lives as long as its workers do.
        while start_of(builder) == started:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=end_with_builder, daemon=True).start()


def _widen(queue: Any) -> None:
    """Let a pipe of multiprocessing's hold a megabyte, where the system can: fewer turns for large results."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # the user's share of pipe memory is used up: the pipe stays as it is
            fcntl.fcntl(queue._writer.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)


@contextmanager
def _dask(data: ShardSettings, input_bytes: int) -> Iterator[Workers]:
    """Connect to the Dask cluster at `data.scheduler`."""
    if data.scheduler is None:
        raise UserError("data.executor dask needs the scheduler's address: set data.scheduler, as tcp://HOST:8786")
    with _dask_workers(data.scheduler) as workers:
        yield workers


@contextmanager
def _slurm(data: ShardSettings, input_bytes: int) -> Iterator[Workers]:
    """Submit `data.workers` Slurm jobs, each a Dask worker."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise UserError("data.executor slurm needs dask-jobqueue: run `pip install malmoi[dask]`") from error
    try:
        # Queue, account, cores and memory are the site's: they are in dask-jobqueue's own configuration.
        cluster = SLURMCluster()
    except (ValueError, TypeError) as error:
        raise UserError(
            f"data.executor slurm: set cores and memory in ~/.config/dask/jobqueue.yaml ({one_line(error)})"
        ) from error
    jobs = data.workers or 1
    try:
        cluster.scale(jobs=jobs)
        log.info("%d jobs submitted to Slurm; encoding begins with the first that starts", jobs)
        with _dask_workers(cluster) as workers:
            yield workers
    finally:
        cluster.close()


@contextmanager
def _dask_workers(address: Any) -> Iterator[Workers]:
    """Connect to a Dask cluster, given as an address or a cluster object.

    Raises:
        BrokenExecutor: workers died, one after another, of the same chunk.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError("data.executor dask needs dask.distributed: run `pip install malmoi[dask]`") from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.scheduler {address}: cannot be reached ({one_line(error)}); start it with `dask scheduler`"
        ) from error
    try:
        # Not pure: the same chunk of a file that has changed must be read again.
        executor = client.get_executor(pure=False)
        yield Workers(executor, lambda: max(4, 2 * sum(client.nthreads().values())))
    except KilledWorker as error:
        raise BrokenExecutor(one_line(error)) from error
    finally:
        client.close()


OpenWorkers: TypeAlias = Callable[[ShardSettings, int], AbstractContextManager[Workers]]
"""Opens workers by the settings, for an input of so many bytes as stored; closes them at the end of the block."""

EXECUTORS: Registry[OpenWorkers] = Registry({"local": _local, "dask": _dask, "slurm": _slurm})
"""Executors by the name in `data.executor`."""


def open_workers(data: ShardSettings, input_bytes: int) -> AbstractContextManager[Workers]:
    """Open the executor that the settings name, for an input of so many bytes as stored.

    Raises:
        UserError: there is no such executor, or what it needs is not installed, not set, or cannot be reached.
    """
    return registry_entry(EXECUTORS, "data.executor", data.executor)(data, input_bytes)
