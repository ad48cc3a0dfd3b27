"""Whatever is wrong with a file of JSON lines is reported with its place, and as nothing else."""

import gzip
import os
import random
from pathlib import Path

import pytest

from malmoi.errors import UserError
from malmoi.jsonl import json_rows

ROWS = [{"text": f"글 {number}"} for number in range(50)]
CONTENT = "".join(f'{{"text": "글 {number}"}}\n\n' for number in range(50)).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_rows_and_places(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(CONTENT) if name.endswith(".gz") else CONTENT)
    assert list(json_rows(file, "")) == [(row, f"{file}:{2 * number + 1}") for number, row in enumerate(ROWS)]


def test_any_damage_to_a_gzip_is_bad_input(tmp_path: Path) -> None:
    file, compressed, chance = tmp_path / "a.jsonl.gz", gzip.compress(CONTENT, mtime=0), random.Random(3)
    refused = 0
    for _ in range(300):
        damaged = bytearray(compressed)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            # A few bytes of the header say nothing of the content.
            assert [row for row, _ in json_rows(file, "")] == ROWS
        except UserError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("end", ["]", ""])
def test_a_line_nested_beyond_what_the_parser_takes_is_named(tmp_path: Path, end: str) -> None:
    depth, file = 200_000, tmp_path / "a.jsonl"
    file.write_text('{"text": "글"}\n' + "[" * depth + end * depth + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:2: nested too deeply"):
        list(json_rows(file, ""))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe\.jsonl: a folder, pipe or device and no file; name another"):
        list(json_rows(tmp_path / "pipe.jsonl", "name another"))
