"""A dead builder is told apart from a live one: at once on its host, elsewhere after a silence, whatever clocks say."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from malmoi.data_prep.pipeline import heartbeat
from malmoi.data_prep.pipeline.heartbeat import Heartbeat, LivenessCheck, start_of
from tests.data_prep.building import wait_until


def test_a_builder_on_another_host_is_dead_after_a_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(heartbeat, "_this_host", lambda: "elsewhere")
    with Heartbeat(tmp_path):
        pass
    monkeypatch.setattr(heartbeat, "_this_host", lambda: "here")
    watch = LivenessCheck()
    assert not watch.is_dead(tmp_path)
    time.sleep(0.6)
    assert watch.is_dead(tmp_path)


def test_a_step_of_the_clock_makes_no_live_builder_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_of(os.getpid())
    with Heartbeat(tmp_path):
        # What the system says of when it booted moves with its clock.
        booted = psutil._pslinux.boot_time()
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted + 1)
        assert psutil.Process().create_time() > 0
        assert not LivenessCheck().is_dead(tmp_path)
        assert start_of(os.getpid()) == started


def test_the_clock_ticks_of_another_boot_are_no_live_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Heartbeat(tmp_path):
        (tmp_path / "boot_id").write_text("of the boot after", encoding="utf-8")
        monkeypatch.setattr(heartbeat, "BOOT_FILE", tmp_path / "boot_id")
        assert LivenessCheck().is_dead(tmp_path)


def test_a_process_that_has_ended_has_no_start(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert start_of(process.pid) is not None
    process.kill()
    # Not waited for as yet, and then waited for.
    wait_until(lambda: start_of(process.pid) is None)
    process.communicate()
    assert start_of(process.pid) is None


def test_a_process_id_used_again_is_no_live_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Heartbeat(tmp_path):
        pass
    assert not LivenessCheck().is_dead(tmp_path)
    monkeypatch.setattr(heartbeat, "start_of", lambda pid: "another time")
    assert LivenessCheck().is_dead(tmp_path)
