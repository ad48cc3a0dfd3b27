"""Signals as a process gets them."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from malmoi.train.distributed import stop_consensus
from malmoi.train.distributed.stop_consensus import STOP_SIGNALS, StopRequest, stop_ends_setup
from tests.launching import environment
from tests.time_limits import seconds

SCRIPT = """
import sys, time
from malmoi.train.distributed.stop_consensus import StopRequest
stop = StopRequest()
listening = stop.listening()
listening.__enter__()
print("ready", flush=True)
while not stop.signal_name:
    time.sleep(0.01)
print(stop.signal_name, flush=True)
while len(sys.argv) > 1:
    time.sleep(0.01)
sys.exit(75)
"""


def started(*words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_each_stop_signal_is_noted_and_the_loop_decides_when(number: signal.Signals) -> None:
    process = started()
    process.send_signal(number)
    out, _ = process.communicate(timeout=seconds(30))
    assert out == f"{number.name}\n"
    assert process.returncode == 75


def test_a_second_sigint_ends_the_process_at_once() -> None:
    process = started("never stops by itself")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "SIGINT\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=seconds(30))
    assert process.returncode == -signal.SIGINT


@pytest.fixture
def handlers() -> Iterator[list[Any]]:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    yield before
    for number, handler in zip(STOP_SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_earlier_signal_handlers_are_restored(handlers: list[Any]) -> None:
    with StopRequest().listening():
        pass
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    signal.signal(signal.SIGUSR1, own := lambda number, frame: None)
    stop = StopRequest()
    with pytest.raises(KeyError), stop.listening():
        signal.raise_signal(signal.SIGUSR1)
        raise KeyError
    assert stop.signal_name == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) is own


def test_a_stop_signal_that_is_sent_again_does_not_end_a_process_that_has_stopped(handlers: list[Any]) -> None:
    with StopRequest().listening():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGINT) is handlers[STOP_SIGNALS.index(signal.SIGINT)]


IN_SETUP = """
import sys, time
from datetime import timedelta
from torch.distributed import HashStore
from malmoi.train.distributed.stop_consensus import StopRequest, stop_ends_setup
stop = StopRequest()
with stop.listening(), stop_ends_setup():
    print("ready", flush=True)
    # As torch waits for a rank that has died.
    HashStore().wait(["never set"], timedelta(seconds=float(sys.argv[1])))
"""


@pytest.mark.parametrize(("ranks", "waits", "code"), [("2", "600", 75), ("1", "8", 1)])
def test_a_stop_signal_ends_one_of_several_ranks_that_sets_up(ranks: str, waits: str, code: int) -> None:
    """A rank alone waits for nobody: it comes to its loop, or here to the end of the wait."""
    process = subprocess.Popen(
        [sys.executable, "-c", IN_SETUP, waits],
        env={**environment(), "WORLD_SIZE": ranks, "RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        _, said = process.communicate(timeout=seconds(60))
    finally:
        process.kill()
    assert process.returncode == code
    assert ("SIGTERM before the first step: nothing was trained since" in said) == (code == 75)


def test_a_stop_signal_during_setup_leaves_the_decision_to_the_loop(
    handlers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stop_consensus, "SETUP_SECONDS", 0.3)
    stop = StopRequest()
    with stop.listening():
        with stop_ends_setup():
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert stop.signal_name == "SIGTERM"
