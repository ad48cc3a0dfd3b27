"""Ranks that do not meet say who is missing and end; those that do share a process group."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from malmoi.errors import RunFailed, UserError
from malmoi.train.distributed import rendezvous
from malmoi.train.distributed.launch_env import LaunchEnv
from malmoi.train.distributed.rendezvous import met_ranks
from tests.launching import environment
from tests.time_limits import seconds, wait_until


def launch(rank: int, num_ranks: int) -> LaunchEnv:
    return LaunchEnv(rank, num_ranks, None, None, None, None, False)


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(autouse=True)
def by_hand(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of ranks that were started by hand, and little patience."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NOTE_SECONDS", "GONE_SECONDS"):
        monkeypatch.setattr(rendezvous, name, 0.5)


def come(rank: int, stage: str, said: list[str]) -> threading.Thread:
    """Have a rank of four wait in a thread, which notes how that ends."""

    def attend() -> None:
        try:
            with met_ranks(launch(rank, 4), stage, seconds(60)):
                said.append("met")
        except RunFailed as error:
            said.append(str(error))

    thread = threading.Thread(target=attend)
    thread.start()
    return thread


def test_those_that_are_missing_are_named_and_the_rest_end(port: int, caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    other = come(2, "stage", said)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RunFailed, match=r"^rank 0: ranks 1, 3 of 4 did not come to 127.0.0.1:\d+ within 4 s; see"),
        met_ranks(launch(0, 4), "stage", 4),
    ):
        pass
    other.join(seconds(30))
    assert said == ["rank 2: rank 0 left before all ranks had met; see what it says itself, and start all again"]
    notes = [record.getMessage() for record in caplog.records]
    assert [re.sub(r" 2,|\d+ s", "", note) for note in notes if note.startswith("ranks 1,")] == [
        f"ranks 1, 3 of 4 not here after , waiting at 127.0.0.1:{port}"
    ]


def test_ranks_of_another_run_at_the_same_address_are_not_these() -> None:
    said: list[str] = []
    others = [come(rank, "another run", said) for rank in (1, 2, 3)]
    with pytest.raises(RunFailed, match="rank 0: ranks 1, 2, 3 of 4 did"), met_ranks(launch(0, 4), "a run", 4):
        pass
    for other in others:
        other.join(seconds(30))
    assert len(said) == 3
    assert not [text for text in said if text == "met"]


def test_all_that_come_meet() -> None:
    said: list[str] = []
    others = [come(rank, "stage", said) for rank in (1, 2, 3)]
    with met_ranks(launch(0, 4), "stage", seconds(60)):
        for other in others:
            other.join(seconds(30))
    assert said == ["met"] * 3


def test_rank_0_that_never_comes_is_named() -> None:
    with (
        pytest.raises(RunFailed, match=r"rank 3: rank 0 of 4 did not come to .* \(Connection refused\) within 1 s"),
        met_ranks(launch(3, 4), "stage", seconds=1),
    ):
        pass


def test_a_port_that_is_taken_is_refused(port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(UserError, match=f"MASTER_PORT {port}: another process of this machine uses it"),
        met_ranks(launch(0, 2), "stage"),
    ):
        pass


def test_something_else_that_listens_there_does_not_hang_a_rank(port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(RunFailed, match="rank 1: rank 0 of 2 did not come"),
        met_ranks(launch(1, 2), "stage", seconds=1),
    ):
        pass


def test_a_launchers_store_that_is_not_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(RunFailed, match=r"rank 0: the launcher at .* is gone"), met_ranks(launch(0, 2), "stage"):
        pass


UNDER_TORCHRUN = """
import os, pathlib, sys, time
from malmoi.errors import RunFailed
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.distributed.rendezvous import met_ranks
folder = pathlib.Path(sys.argv[1])
launch = read_launch_env()
(folder / f"pid-{launch.rank}").write_text(f"{os.getpid()} {os.getppid()} ")
if launch.rank == 1:
    time.sleep(600)
try:
    with met_ranks(launch, "stage"):
        pass
except RunFailed as error:
    (folder / "said").write_text(str(error))
"""


def test_ranks_whose_launcher_was_killed_end(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(UNDER_TORCHRUN, encoding="utf-8")
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(program), str(tmp_path)],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    pids = [tmp_path / f"pid-{rank}" for rank in (0, 1)]
    wait_until(
        lambda: all(file.is_file() and file.read_text(encoding="utf-8").endswith(" ") for file in pids),
        60,
        "both ranks",
    )
    launcher.kill()
    launcher.wait()
    try:
        wait_until(lambda: (tmp_path / "said").is_file(), 60, "rank 0 to end")
    finally:
        for file in pids:
            rank, parent = map(int, file.read_text(encoding="utf-8").split())
            assert parent == launcher.pid
            try:
                os.kill(rank, signal.SIGKILL)
            except ProcessLookupError:
                continue
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.startswith("rank 0: the launcher at ")
    assert said.endswith("; start the ranks again")
