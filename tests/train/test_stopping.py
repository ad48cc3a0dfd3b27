"""A stop signal to one rank is known to all at the same step, and asking for it holds up none."""

import time
from pathlib import Path

from accelerate import Accelerator

from tests.train.ranks import on_two_ranks
from train.signals import StopRequest
from train.stopping import StopAgreement


def accelerator_of_two() -> Accelerator:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    return accelerator


def ask_before_the_other_rank(rank: int, folder: Path) -> None:
    """Rank 1 asks only when rank 0 has come back from asking."""
    agreement = StopAgreement(StopRequest(), accelerator_of_two())
    asked = folder / "asked"
    while rank == 1 and not asked.exists():
        time.sleep(0.01)
    agreement.ask()
    asked.touch()
    assert agreement.answer() is None


def hear_of_the_other_rank(rank: int, folder: Path) -> None:
    stop = StopRequest()
    agreement = StopAgreement(stop, accelerator_of_two())
    assert agreement.now() is None
    agreement.ask()
    if rank == 1:
        stop.signal_name = "SIGTERM"
    assert agreement.answer() is None, "what came after the question belongs to the next"
    assert agreement.now() == ("SIGTERM" if rank == 1 else "a signal to another rank")


def test_asking_does_not_wait_for_the_other_rank(tmp_path: Path) -> None:
    on_two_ranks(ask_before_the_other_rank, tmp_path)


def test_a_signal_to_one_rank_is_heard_by_all_in_the_same_answer(tmp_path: Path) -> None:
    on_two_ranks(hear_of_the_other_rank, tmp_path)


def test_a_rank_alone_answers_for_itself() -> None:
    stop = StopRequest()
    agreement = StopAgreement(stop, Accelerator(cpu=True))
    assert agreement.answer() is None
    stop.signal_name = "SIGUSR1"
    assert agreement.now() == "SIGUSR1"
