"""A broken row of CSV costs itself, or the lines that its quotes take, and no row takes more memory than allowed."""

import re
from pathlib import Path

import pytest

from malmoi.errors import UserError
from tests.data_prep.reading import SKIP, read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1\n", r"a\.csv:1: 1 fields under a header of 2 \(line 2\)"),
        ('id,text\n1,"가"나\n', r"a\.csv:1: broken CSV"),
        ('id,text\n1,"끝나지 않는\n', r"a\.csv:1: broken CSV"),
        ("id,글\n1,가\n", r"a\.csv:1: no column 'text' \('id', '글'\); set corpus\.text_field"),
    ],
)
def test_broken_csv_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv")


def test_a_broken_csv_row_costs_the_lines_that_it_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        '1,"가"나',
        "2,나",
        '3,"열린 따옴표',
        "4,다",
        '5,"라"',
        f"6,{'길' * 5000}",
        "7,마\0바",
        '8,"끝나지 않는',
        "9,사",
    ]
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows) + "\n", encoding="utf-8")
    assert read(tmp_path / "a.csv", max_document_bytes=1024, **SKIP) == ["나", "마\0바"]
    # Rows 4 and 5 are inside the quotes that row 3 opens, row 9 in those of row 8.
    assert "7 of 9 records were skipped: 3 csv, 1 too_long, 3 unreachable" in caplog.text


@pytest.mark.parametrize("row", ['"a\n",' * 4000 + "끝\n", '"' + "긴 줄\n" * 2000 + '"\n'])
def test_a_csv_row_of_however_many_lines_is_never_completely_in_memory(
    tmp_path: Path, row: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text\n가\n" + row + "나\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv:2: a row of more than 4096 characters; fix its quotes, or"):
        read(file, max_document_bytes=1024)
    assert read(file, max_document_bytes=1024, **SKIP)[0] == "가"
    counted = re.search(r"(\d+) of (\d+) records were skipped: .*too_long, (\d+) unreachable", caplog.text)
    assert counted is not None and int(counted[3]) >= 500


def test_the_memory_of_a_csv_row_is_bounded_and_not_the_number_of_rows(tmp_path: Path) -> None:
    rows = [f'"글 {number}\n{"둘째 줄" * 60}"' for number in range(100)]
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(rows), encoding="utf-8")
    assert read(tmp_path / "a.csv", max_document_bytes=1024) == [row.strip('"') for row in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_ends_a_csv_row(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.csv").write_bytes(end.join(["id,text", "1,가", '2,"나\n다"', "3,라", ""]).encode("utf-8-sig"))
    assert read(tmp_path / "a.csv") == ["가", "나\n다", "라"]


def test_csv_in_cp949(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,text\n1,똠방각하\n".encode("cp949"))
    assert read(tmp_path / "a.csv", encoding="cp949") == ["똠방각하"]
    assert read(tmp_path / "a.csv", encoding="auto") == ["똠방각하"]
    with pytest.raises(UserError, match=r"a\.csv:1: not UTF-8 \(line 2\)"):
        read(tmp_path / "a.csv")
