"""What rank 0 alone does or reads: work for which the other ranks wait, and what it tells them of files."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list

from malmoi.errors import RunFailed
from malmoi.train.distributed.dist_env import DistEnv

BEAT_SECONDS = 10.0
"""Between two signs of life: well below the timeout of a collective."""
WORKING, DONE, FAILED = 0, 1, 2
Read = TypeVar("Read")


def read_by_rank_zero(env: DistEnv, read: Callable[[], Read]) -> Read:
    """Return on every rank what `read` returns on rank 0; every rank must call this.

    What decides about a collective is read so: on a network disk another rank may still see an older file, or none.
    """
    found = [read() if env.is_main else None]
    broadcast_object_list(found, from_process=0)
    return found[0]  # type: ignore[return-value]  # accelerate fills the list


def while_others_wait(env: DistEnv, work: Callable[[Callable[[], None]], None]) -> None:
    """Have rank 0 do `work(still_working)`; every rank must call this, and returns when the work is done.

    One barrier would end in a timeout of its collective, and ranks that had left would have the launcher end rank 0.

    Args:
        work: must call `still_working()` every few seconds.

    Raises:
        RunFailed: on the others, where `work` raised on rank 0.
    """
    if not env.is_main:
        while (state := _from_rank_zero(env, WORKING)) == WORKING:
            pass
        if state == FAILED:
            raise RunFailed("rank 0 has failed; its message says why")
        return
    last = time.monotonic()

    def still_working() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            _from_rank_zero(env, WORKING)
            last = time.monotonic()

    try:
        work(still_working)
    except BaseException:
        _from_rank_zero(env, FAILED)
        raise
    _from_rank_zero(env, DONE)


def _from_rank_zero(env: DistEnv, state: int) -> int:
    """Return the state that rank 0 gives; the others give 0."""
    return int(env.accelerator.reduce(torch.tensor(state, device=env.device), "sum"))
