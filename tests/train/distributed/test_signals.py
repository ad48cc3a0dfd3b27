"""Signals as a process gets them."""

import signal
import subprocess
import sys

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


def test_earlier_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    stop = StopRequest()
    with pytest.raises(KeyError), stop.listening():
        signal.raise_signal(signal.SIGUSR1)
        raise KeyError
    assert stop.signal_name == "SIGUSR1"
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
