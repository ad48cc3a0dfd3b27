"""A Dask cluster writes the bytes that this machine alone writes."""

import os
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings, ExecutorName, ShardSettings
from malmoi.configs.validate import check_settings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.pipeline.executors import EXECUTORS, InlineExecutor, Workers, open_workers
from malmoi.data_prep.readers import chunks
from malmoi.errors import UserError
from tests.data_prep.building import content_of, wait_until
from tests.time_limits import seconds


def test_a_dask_cluster_writes_the_same_bytes(
    reviews: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 500_000)
    corpus = CorpusSettings(input=(str(reviews),))
    alone = prepare_shards(corpus, DataSettings(workers=1, shard_tokens=200_000), tokenizer_folder, tmp_path / "alone")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    ) as cluster:
        data = DataSettings(executor="dask", scheduler=cluster.scheduler_address, shard_tokens=200_000)
        together = prepare_shards(corpus, data, tokenizer_folder, tmp_path / "together")
    names = sorted(file.name for file in alone.iterdir())
    assert names == sorted(file.name for file in together.iterdir()) and len(names) > 8
    assert all((alone / name).read_bytes() == (together / name).read_bytes() for name in names)


def test_as_many_chunks_are_in_flight_as_there_are_workers_for_now() -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with distributed.LocalCluster(
        n_workers=0, threads_per_worker=4, processes=False, dashboard_address=None
    ) as cluster:
        data = DataSettings(executor="dask", scheduler=cluster.scheduler_address)
        with open_workers(data, 1) as workers:
            assert workers.window() == 4
            # As jobs do that wait in a queue, they come when the build is under way.
            cluster.scale(2)
            wait_until(lambda: workers.window() == 16)


def test_dead_workers_of_a_cluster_are_a_broken_executor() -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        pytest.raises(BrokenExecutor, match="died"),
        open_workers(DataSettings(executor="dask", scheduler=cluster.scheduler_address), 1) as workers,
    ):
        workers.executor.submit(os._exit, 1).result(timeout=seconds(60))


def test_an_executor_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UserError, match=r"data\.executor dask needs the scheduler's address"),
        open_workers(DataSettings(executor="dask"), 1),
    ):
        pass
    with pytest.raises(UserError, match=r"^workers 0: give "):
        check_settings(DataSettings(workers=0))
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UserError, match=r"data\.scheduler tcp://127\.0\.0\.1:9: cannot be reached"),
        open_workers(DataSettings(executor="dask", scheduler="tcp://127.0.0.1:9"), 1),
    ):
        pass


def test_the_settings_name_the_executors_of_the_registry_and_an_unknown_name_gets_the_nearest() -> None:
    named = next(hint for hint in get_args(ExecutorName) if get_origin(hint) is Literal)
    assert set(get_args(named)) == set(EXECUTORS)
    unknown = r"data\.executor slrum: no entry of that name; did you mean 'slurm'\? Known: local, dask, slurm; a plugin"
    with pytest.raises(UserError, match=unknown):
        open_workers(DataSettings(executor="slrum"), 1)


def test_an_executor_of_one_s_own_writes_the_same_bytes(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("글 하나\n글 둘\n" * 1000, encoding="utf-8")
    opened: list[int] = []

    @contextmanager
    def open_mine(data: ShardSettings, input_bytes: int) -> Iterator[Workers]:
        opened.append(input_bytes)
        yield Workers(InlineExecutor(), lambda: 2)

    monkeypatch.setitem(EXECUTORS, "mine", open_mine)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),))
    mine, local = (
        prepare_shards(corpus, DataSettings(executor=name), tokenizer_folder, tmp_path / name)
        for name in ("mine", "local")
    )
    assert opened == [(tmp_path / "a.txt").stat().st_size]
    assert content_of(mine) == content_of(local)


def test_slurm_without_its_configuration_is_named() -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    with (
        pytest.raises(UserError, match=r"data\.executor slurm: set cores and memory in ~/\.config/dask/jobqueue\.yaml"),
        open_workers(DataSettings(executor="slurm"), 1),
    ):
        pass


def test_every_worker_of_this_machine_starts_with_the_first_task() -> None:
    """One that started later, while the pool ends for another's death, would be waited for without end."""
    with open_workers(DataSettings(workers=3), 1) as workers:
        workers.executor.submit(os.getpid).result(timeout=seconds(60))
        assert isinstance(workers.executor, ProcessPoolExecutor)
        assert len(workers.executor._processes) == 3
