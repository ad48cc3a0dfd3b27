"""Commands whose output is closed, or read by nobody, or to a terminal that lacks Korean."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import environment
from tests.time_limits import seconds

MALMOI = "import sys; from malmoi.launch.cli import main; sys.exit(main())"
WORK = """
import sys
from malmoi.standard_streams import reliable_streams
with reliable_streams(True):
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        for number in range(2000):
            print("printed" * 20)
            print("said", file=sys.stderr)
            file.write("written")
"""


def python(program: str, *words: str, redirection: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'"$0" "$@" {redirection}', sys.executable, "-c", program, *words],
        env={**environment(), **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=seconds(60),
        check=False,
    )


@pytest.mark.parametrize(
    "redirection", [">&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | true; exit ${PIPESTATUS[0]}"]
)
def test_work_continues_whoever_reads_its_output(tmp_path: Path, redirection: str) -> None:
    done = python(WORK, str(tmp_path / "file"), redirection=redirection)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text(encoding="utf-8") == "written" * 2000


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("no-command",)])
def test_a_command_whose_reader_has_gone_ends_as_by_sigpipe(words: tuple[str, ...]) -> None:
    # A file of no reader from the start: `| head` would leave it to chance.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", MALMOI, *words],
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE if "--help" in words else writer,
        timeout=seconds(60),
        check=False,
    )
    os.close(writer)
    # Training continues; its help is none of what it writes to disk, and no loss.
    assert done.returncode == (0 if "train" in words else 141)
    assert not done.stderr


@pytest.mark.parametrize("encoding", ["", "euc-kr"])
def test_a_locale_without_utf_8_reads_korean_names_and_escapes_what_its_terminal_lacks(
    finished_shards: Path, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "훈민정음").symlink_to(finished_shards)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = python(MALMOI, "inspect", str(tmp_path / "훈민정음"), **plain)
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        [sys.executable, "-c", MALMOI, "훈민정음 ☃"],
        env={**environment(), **plain, **({"PYTHONIOENCODING": encoding} if encoding else {})},
        capture_output=True,
        timeout=seconds(60),
        check=False,
    )
    assert refused.returncode == 2
    said = "훈민정음 ☃".encode(encoding or "ascii", "backslashreplace")
    assert refused.stderr.startswith(b"malmoi " + said + b": no command '" + said + b"'")
