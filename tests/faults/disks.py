"""Disks that are full, read-only or out of inodes, and then have room again."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.kills import has_right_shards
from tests.faults.outcome import Ended, Outcome, of_command, refusal
from tests.faults.workplace import Workplace


def disk_faults() -> Iterator[Fault]:
    """Yield disks of many sizes, so that each write is once the one that fails."""
    for kib in (
        40,
        80,
        120,
        160,
        200,
        250,
        300,
        400,
        500,
        600,
        700,
        800,
        1000,
        1200,
        1400,
        1700,
        2000,
        2400,
        3000,
        4000,
    ):
        yield Fault("a full disk", f"train on {kib} KiB, then on enough", partial(_train_on, f"size={kib}k"))
    for inodes in (2, 4, 8, 12, 16, 24, 32):
        yield Fault("a disk without inodes", f"train with {inodes}", partial(_train_on, f"nr_inodes={inodes}"))
    for kib in (4, 8, 16, 32, 48, 64, 80, 100, 120, 150, 180, 220):
        yield Fault("a full disk", f"prepare on {kib} KiB, then on enough", partial(_prepare_on, f"size={kib}k"))
    for kib in (1, 10, 40, 100, 300, 700, 1000):
        yield Fault(
            "a limit on file sizes", f"train with {kib} KiB, then without", partial(_train_with_limit, kib << 10)
        )
    yield Fault("a read-only disk", "train", partial(_read_only, "train"))
    yield Fault("a read-only disk", "prepare", partial(_read_only, "prepare"))


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs of its own at `folder`, which takes root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _resumed(first: Ended, again: Ended, is_right: bool) -> tuple[Outcome, Ended]:
    """Return the outcome of a command that may have been refused, and then was run again with room."""
    outcome = of_command(again, is_right)
    if first.code == 0:
        return outcome, again
    refused = refusal(first)
    if refused is not Outcome.REFUSED:
        return refused, first
    return (Outcome.RESUMED if outcome is Outcome.RIGHT else outcome), again


def _train_on(options: str, place: Workplace) -> tuple[Outcome, Ended]:
    # What the processes print is not on the small disk.
    with tmpfs(place.run, options):
        first = place.fork(place.train_words()).end()
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10000", str(place.run)], check=True)
        again = place.fork(place.train_words()).end()
        return _resumed(first, again, place.has_right_weights())


def _prepare_on(options: str, place: Workplace) -> tuple[Outcome, Ended]:
    out = place.folder / "shards"
    with tmpfs(out, options):
        first = place.fork(place.prepare_words()).end()
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        again = place.fork(place.prepare_words()).end()
        return _resumed(first, again, has_right_shards(place))


def _train_with_limit(limit: int, place: Workplace) -> tuple[Outcome, Ended]:
    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    elsewhere = replace(place, folder=place.folder / "output")
    elsewhere.folder.mkdir()
    first = elsewhere.fork(place.train_words(), before=before).end()
    again = place.fork(place.train_words()).end()
    return _resumed(first, again, place.has_right_weights())


def _read_only(command: str, place: Workplace) -> tuple[Outcome, Ended]:
    disk = place.folder / "disk"
    with tmpfs(disk, "size=64m"):
        inner = replace(place, folder=disk)
        if command == "train":
            inner.copy_stopped_run()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        words = inner.train_words() if command == "train" else inner.prepare_words()
        ended = place.fork(words).end()
    return refusal(ended) if ended.code else Outcome.SILENT, ended


def is_possible() -> bool:
    """Whether file systems can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None
