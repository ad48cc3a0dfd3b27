"""The harness of faults: one of each kind here, all of them in `make soak`; and what it is to find, it finds."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.__main__ import all_faults, happen
from tests.faults.bit_flips import flip_files
from tests.faults.disks import is_possible
from tests.faults.fault import Fault
from tests.faults.outcome import Ended, Outcome, of_command, refusal
from tests.faults.workplace import Workplace, fork_call, make_reference
from tests.time_limits import wait_until

ONE_OF_EACH = (
    "SIGKILL of train, from text: moment 4",
    "SIGKILL of train, from a checkpoint: moment 3",
    "SIGTERM of prepare: moment 0",
    "a full disk: train on 400 KiB, then on enough",
    "a file of a stopped run: checkpoints/step-000015/state.json is cut in half",
    "a file of a stopped run: metrics.jsonl holds random bytes",
    "hostile text: eight_bytes.txt --encoding cp949",
    "a wrong launcher: WORLD_SIZE=x",
    "closed streams: stdout and stderr closed, train",
    "a locale or environment: LC_ALL=C, no UTF-8 mode, generate",
    "wrong words: a plugin of nobody",
    "a folder in the way: .training.lock is a folder",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not is_possible():
        pytest.skip("disks are mounted and rights dropped: that takes root")
    folder = make_reference(tmp_path_factory.mktemp("faults") / "reference")
    for each in (folder, *list(folder.parents)[:3]):
        each.chmod(0o755)  # for those who have no rights
    return folder


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_fault_ends_right_or_is_refused_in_one_line(name: str, reference: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    [fault] = [each for each in all_faults(reference) if f"{each.group}: {each.name}" == name]
    result = happen(fault, tmp_path / "fault", reference)
    assert result.is_good, result


@pytest.mark.soak
def test_all_faults_end_right_or_are_refused_in_one_line(reference: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    faults = list(all_faults(reference))
    assert len(faults) >= 300
    results = [happen(fault, tmp_path / str(number), reference) for number, fault in enumerate(faults)]
    assert not [result for result in results if not result.is_good]


@pytest.mark.soak
def test_200_flipped_bits_of_every_file_are_seen_and_do_no_harm(reference: Path, tmp_path: Path) -> None:
    files = list(flip_files(reference, tmp_path, flips=200, trained=20))
    assert len(files) >= 25
    assert not [each for each in files if not each.is_good]


def test_a_flipped_bit_that_nothing_checks_is_found_by_the_harness(reference: Path, tmp_path: Path) -> None:
    """Of a file that no record covers: the flips of it are unseen."""
    unchecked = reference / "run" / "notes.txt"
    unchecked.write_text("nobody records this", encoding="utf-8")
    try:
        [flips] = flip_files(reference, tmp_path, flips=3, trained=1, only="notes.txt")
    finally:
        unchecked.unlink()
    assert flips.unseen == 3 and not flips.is_good
    assert flips.outcomes == {Outcome.RIGHT: 1}


def test_each_defect_has_its_name(tmp_path: Path) -> None:
    said = "malmoi train: no such file"
    assert of_command(Ended(0, "", ""), is_right=False) is Outcome.SILENT
    assert of_command(Ended(0, "", ""), is_right=True) is Outcome.RIGHT
    assert of_command(Ended(2, "", said), is_right=True) is Outcome.REFUSED
    assert refusal(Ended(None, "", said)) is Outcome.HANGS
    assert refusal(Ended(1, "", "")) is Outcome.WORDLESS
    assert refusal(Ended(-signal.SIGSEGV, "", said)) is Outcome.WORDLESS
    assert refusal(Ended(1, "", f"Traceback (most recent call last):\n{said}")) is Outcome.TRACEBACK
    assert refusal(Ended(9, "", said)) is Outcome.CODE


def test_a_fork_is_a_process_of_its_own_that_meets_signals_as_any_other(tmp_path: Path) -> None:
    def sleep() -> int:
        print(json.dumps([os.getpid(), str(Path.cwd())]), flush=True)
        time.sleep(3600)
        return 0

    process = fork_call(sleep, tmp_path)
    wait_until(lambda: bool((tmp_path / "stdout.txt").read_text(encoding="utf-8")), 30, "the process has begun")
    process.send(signal.SIGTERM)
    ended = process.end()
    assert ended.code == -signal.SIGTERM
    assert json.loads(ended.stdout) == [process.pid, str(tmp_path)]
    assert fork_call(lambda: 7, tmp_path).end().code == 7


def test_a_fault_is_named_once(reference: Path) -> None:
    names = [f"{each.group}: {each.name}" for each in all_faults(reference)]
    assert len(names) == len(set(names)) >= 300
    assert all(isinstance(each, Fault) and callable(each.happen) for each in all_faults(reference))
    assert Workplace(reference, reference).config.is_file()
