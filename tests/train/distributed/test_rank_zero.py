"""Rank 0 works alone for longer than a collective waits, and its failure is the others'."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

from malmoi.errors import RunFailed
from malmoi.train.distributed import rank_zero
from malmoi.train.distributed.rank_zero import while_others_wait
from tests.train.distributed.test_stop_consensus import env_of
from tests.train.ranks import on_two_ranks


def work_for_longer_than_the_timeout(rank: int, folder: Path) -> None:
    rank_zero.BEAT_SECONDS = 0.2
    env = env_of(2)
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=4), distributed.group.WORLD)

    def work(still_working: Callable[[], None]) -> None:
        assert rank == 0
        end = time.monotonic() + 8
        while time.monotonic() < end:
            time.sleep(0.05)
            still_working()
        (folder / "done").touch()

    while_others_wait(env, work)
    assert (folder / "done").exists()


def fail(rank: int, folder: Path) -> None:
    def work(still_working: Callable[[], None]) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError if rank == 0 else RunFailed, match=r"broken|rank 0 has failed"):
        while_others_wait(env_of(2), work)


def test_the_others_wait_for_longer_than_a_collective_does(tmp_path: Path) -> None:
    on_two_ranks(work_for_longer_than_the_timeout, tmp_path)


def test_a_failure_of_rank_0_ends_the_others(tmp_path: Path) -> None:
    on_two_ranks(fail, tmp_path)


def test_a_rank_alone_waits_for_nobody() -> None:
    done = []
    while_others_wait(env_of(1), lambda still_working: done.append(still_working()))
    assert done == [None]
