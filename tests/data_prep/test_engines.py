"""A Dask cluster writes the bytes that this machine alone writes."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from configs.errors import BadInput
from configs.schema import CorpusSettings, DataSettings
from data_prep import chunks
from data_prep.build import prepare_shards
from data_prep.engines import open_engine

sys.path.insert(0, str(Path(__file__).parent))
from building import wait_until


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
        data = DataSettings(engine="dask", scheduler=cluster.scheduler_address, shard_tokens=200_000)
        together = prepare_shards(corpus, data, tokenizer_folder, tmp_path / "together")
    names = sorted(file.name for file in alone.iterdir())
    assert names == sorted(file.name for file in together.iterdir()) and len(names) > 8
    assert all((alone / name).read_bytes() == (together / name).read_bytes() for name in names)


def test_as_many_chunks_are_in_flight_as_there_are_workers_for_now() -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with distributed.LocalCluster(
        n_workers=0, threads_per_worker=4, processes=False, dashboard_address=None
    ) as cluster:
        data = DataSettings(engine="dask", scheduler=cluster.scheduler_address)
        with open_engine(data, 1) as engine:
            assert engine.window() == 4
            # As jobs do that wait in a queue, they come when the build is under way.
            cluster.scale(2)
            wait_until(lambda: engine.window() == 16)


def test_an_engine_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(BadInput, match=r"data\.engine dask needs the scheduler's address"),
        open_engine(DataSettings(engine="dask"), 1),
    ):
        pass
    with pytest.raises(BadInput, match=r"data\.workers 0: choose 1 or more"), open_engine(DataSettings(workers=0), 1):
        pass
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(BadInput, match=r"data\.scheduler tcp://127\.0\.0\.1:9: cannot be reached"),
        open_engine(DataSettings(engine="dask", scheduler="tcp://127.0.0.1:9"), 1),
    ):
        pass


def test_slurm_without_its_configuration_is_named() -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    with (
        pytest.raises(BadInput, match=r"data\.engine slurm: set cores and memory in ~/\.config/dask/jobqueue\.yaml"),
        open_engine(DataSettings(engine="slurm"), 1),
    ):
        pass


def test_every_worker_of_this_machine_starts_with_the_first_task() -> None:
    """One that started later, while the pool ends for another's death, would be waited for without end."""
    with open_engine(DataSettings(workers=3), 1) as engine:
        engine.executor.submit(os.getpid).result(timeout=60)
        assert isinstance(engine.executor, ProcessPoolExecutor)
        assert len(engine.executor._processes) == 3
