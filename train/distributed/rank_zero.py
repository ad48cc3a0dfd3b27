"""Work of rank 0 alone, for which the other ranks wait however long it takes."""

import time
from collections.abc import Callable

import torch

from malmoi.errors import RunFailed
from malmoi.train.distributed.dist_env import DistEnv

BEAT_SECONDS = 10.0
"""Between two signs of life: well below the timeout of a collective."""
WORKING, DONE, FAILED = 0, 1, 2


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
