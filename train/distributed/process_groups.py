"""Process groups that launchers do not start, or start wrong, and how long collectives wait."""

import os
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from malmoi.train.distributed.launch_env import LaunchEnv

WATCHDOG_FIRST = 60
"""Seconds by which a collective outlasts the watchdog, whose stack dump says more."""
DeviceType = Literal["cpu", "cuda"]


def collective_timeout(watchdog_timeout: int) -> timedelta:
    """How long a rank waits in a collective: longer than the watchdog's `watchdog_timeout` seconds, or forever where
    the watchdog is off. torch's 10 minutes are too short for rank 0 to write a large checkpoint."""
    return timedelta(seconds=watchdog_timeout + WATCHDOG_FIRST) if watchdog_timeout else timedelta(days=365)


def start_group_of_one(device_type: DeviceType) -> tuple[str, ...]:
    """Start a process group for a single rank, which sharding backends need even where there is nothing to share.

    Returns:
        The names of the environment variables that were set for it.
    """
    if not distributed.is_initialized():
        backend = "nccl" if device_type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    lent = {
        name: value
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items()
        if name not in os.environ
    }
    os.environ |= lent
    return tuple(lent)


def start_group_after_restart(device_type: DeviceType, launch: LaunchEnv, timeout: timedelta) -> None:
    """Start the process group of ranks that torchrun restarted.

    torchrun's store outlives its ranks: without a prefix, gloo takes the addresses that the dead ranks left in it for
    those of the new ones, and waits for them.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or restarts == "0" or distributed.is_initialized():
        return
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = PrefixStore(f"life-{restarts}", TCPStore(*address, launch.num_ranks, is_master=False))
    distributed.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.num_ranks,
        timeout=timeout,
    )
