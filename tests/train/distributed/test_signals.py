"""Signals as a process gets them."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from malmoi.train.distributed.stop_consensus import STOP_SIGNALS, StopRequest
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
