"""What an error says is one line, with the nearest name where a name is unknown."""

import errno
from pathlib import Path

import pytest

from malmoi.errors import (
    UserError,
    disk_error,
    first_line,
    nearest_name_hint,
    one_line,
    require_argument,
    require_options,
)


def test_a_hint_names_what_is_near_and_ends_its_sentence() -> None:
    assert nearest_name_hint("trian", ["train", "verify"]) == "; did you mean 'train'?"
    assert nearest_name_hint("xyzzy", ["train", "verify"]) == "."


def test_an_error_without_a_message_is_reported_by_its_name() -> None:
    assert first_line(ValueError("  no header\nlong advice")) == "no header"
    assert first_line(KeyError()) == "KeyError"


def test_a_message_of_several_lines_is_put_on_one() -> None:
    assert one_line(ValueError("  a\n  b\tc ")) == "a b c"


def test_a_command_line_that_lacks_options_names_them_all() -> None:
    require_options("fewshot", model=True)
    require_argument("verify", "PATH", True)
    with pytest.raises(UserError, match=r"^--model and --out missing; see `malmoi fewshot --help`$"):
        require_options("fewshot", model=False, tasks=True, out=False)
    with pytest.raises(UserError, match=r"^PATH missing; see `malmoi verify --help`$"):
        require_argument("verify", "PATH", False)


def test_a_full_disk_is_recognized_in_the_message_of_a_library() -> None:
    found = disk_error(Exception("I/O error: No space left on device (os error 28)"), Path("x"))
    assert found is not None
    assert (found.errno, found.filename) == (errno.ENOSPC, "x")
    assert disk_error(Exception("no header"), Path("x")) is None
