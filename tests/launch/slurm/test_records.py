"""Records of submissions and starts are read back, even if their writer was killed."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from malmoi.errors import UserError
from malmoi.launch.cli import main
from malmoi.launch.slurm.records import Submission, read_records, record_submission

SUBMITTED = '{"job": "11", "data_job": "10", "time": 1.5}\n'
STARTED = "11 0 0 0 1700000000 12\n"


def run_folder(folder: Path, submitted: str = SUBMITTED, starts: str = STARTED) -> Path:
    (folder / "slurm").mkdir(parents=True)
    (folder / "slurm" / "submitted.jsonl").write_text(submitted, encoding="utf-8")
    (folder / "slurm" / "starts").write_text(starts, encoding="utf-8")
    return folder


def test_a_record_whose_writer_was_killed_at_any_byte_of_it_is_left_out(tmp_path: Path) -> None:
    for length in range(1, len(SUBMITTED)):
        torn = run_folder(
            tmp_path / str(length), SUBMITTED + SUBMITTED[:length], STARTED + STARTED[: length % len(STARTED)]
        )
        records = read_records(torn)
        assert records.submissions == (Submission("11", "10", 1.5),)
        assert [(start.job, start.next_job) for start in records.starts] == [("11", "12")]
        record_submission(torn, Submission("13", None, 2.0))
        assert [submission.job for submission in read_records(torn).submissions] == ["11", "13"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("submitted.jsonl", SUBMITTED + '{"job": "1\n'),
        ("submitted.jsonl", SUBMITTED + '{"job": "12"}\n'),
        ("submitted.jsonl", SUBMITTED + '{"job": "mine", "data_job": null, "time": 1.5}\n'),
        ("submitted.jsonl", SUBMITTED + "[]\n" + SUBMITTED),
        ("submitted.jsonl", SUBMITTED + "\0\0\n"),
        ("starts", STARTED + "12 0 5 0 1700000000\n"),
        ("starts", STARTED + "12 0 five 0 1700000000 -\n" + STARTED),
        ("starts", STARTED + "twelve 0 5 0 1700000000 -\n"),
        ("starts", STARTED + "\n"),
    ],
)
def test_an_invalid_line_is_named_in_one_line(file: str, content: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path, **{file.removesuffix(".jsonl"): content})
    with pytest.raises(UserError, match=f"{file}:2: not a record of a job"):
        read_records(run)
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(["slurm", "status", str(run)])
    assert (code, out.getvalue(), err.getvalue().count("\n")) == (2, "", 1)
    assert f"{run}/slurm/{file}:2: not a record of a job" in err.getvalue() and "delete the line" in err.getvalue()
