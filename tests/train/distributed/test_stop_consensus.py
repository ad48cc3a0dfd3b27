"""A stop signal to one rank reaches all at the same step, and asking for it blocks none."""

import time
from pathlib import Path

from accelerate import Accelerator

from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.distributed.stop_consensus import StopConsensus, StopRequest
from tests.train.ranks import on_two_ranks


def env_of(num_ranks: int) -> DistEnv:
    """This rank of a run on CPUs."""
    accelerator, launch = Accelerator(cpu=True), read_launch_env()
    assert accelerator.num_processes == launch.dims.dp_size == num_ranks
    return DistEnv(accelerator, "ddp", "fp32", launch, launch.dims)


def ask_before_the_other_rank(rank: int, folder: Path) -> None:
    """Rank 1 asks only when rank 0 has come back from asking."""
    consensus = StopConsensus(StopRequest(), env_of(2))
    asked = folder / "asked"
    while rank == 1 and not asked.exists():
        time.sleep(0.01)
    consensus.ask()
    asked.touch()
    assert consensus.answer() is None


def see_the_signal_of_the_other_rank(rank: int, folder: Path) -> None:
    stop = StopRequest()
    consensus = StopConsensus(stop, env_of(2))
    assert consensus.now() is None
    consensus.ask()
    if rank == 1:
        stop.signal_name = "SIGTERM"
    assert consensus.answer() is None, "what came after the question belongs to the next one"
    assert consensus.now() == ("SIGTERM" if rank == 1 else "a signal to another rank")


def test_asking_does_not_wait_for_the_other_rank(tmp_path: Path) -> None:
    on_two_ranks(ask_before_the_other_rank, tmp_path)


def test_a_signal_to_one_rank_is_in_the_same_answer_of_all(tmp_path: Path) -> None:
    on_two_ranks(see_the_signal_of_the_other_rank, tmp_path)


def test_a_rank_alone_answers_for_itself() -> None:
    stop = StopRequest()
    consensus = StopConsensus(stop, env_of(1))
    assert consensus.answer() is None
    stop.signal_name = "SIGUSR1"
    assert consensus.now() == "SIGUSR1"
