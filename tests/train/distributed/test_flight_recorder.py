"""Ranks that hang say which collective they wait in, and who did not come to it."""

import os
from pathlib import Path

from malmoi.train.distributed.flight_recorder import (
    SAME_HANG_SECONDS,
    Collective,
    RankRecord,
    gathered_records,
    hang_lines,
    write_record,
)


def record(rank: int, *names: str, group: str = "0") -> RankRecord:
    """A rank's record of these collectives, in this order."""
    return RankRecord(rank, tuple(Collective(group, number, name, "[4]") for number, name in enumerate(names, 1)))


def test_the_first_collective_that_not_all_ranks_came_to_is_named_with_both() -> None:
    records = [
        record(0, "all_reduce", "broadcast", "all_reduce"),
        record(1, "all_reduce"),
        record(2, "all_reduce", "broadcast"),
    ]
    assert hang_lines(records, 3) == ["ranks 0, 2 came to broadcast number 2 of group 0, of [4]; rank 1 did not"]


def test_a_rank_that_came_to_nothing_did_not_come() -> None:
    assert hang_lines([record(0, "broadcast"), record(1)], 2) == [
        "rank 0 came to broadcast number 1 of group 0, of [4]; rank 1 did not"
    ]


def test_a_rank_that_cannot_write_is_named_and_what_the_others_wait_in() -> None:
    records = [record(0, "all_reduce", "broadcast"), record(2, "all_reduce", "broadcast")]
    assert hang_lines(records, 4) == [
        "ranks 0, 2 came to broadcast number 2 of group 0, of [4]",
        "ranks 1, 3 wrote no record: stopped, killed, or on a node that cannot write there",
    ]


def test_ranks_outside_of_a_smaller_group_are_not_missed_in_it() -> None:
    records = [
        record(0, "all_gather", "all_gather", group="shards"),
        record(1, "all_gather", group="shards"),
        record(2),
        record(3),
    ]
    assert hang_lines(records, 4) == [
        "rank 0 came to all_gather number 2 of group shards, of [4]; rank 1 did not",
    ]


def test_ranks_that_came_to_the_same_collectives_hang_elsewhere() -> None:
    (line,) = hang_lines([record(0, "all_reduce"), record(1, "all_reduce")], 2)
    assert "look at the stacks" in line


def test_the_records_of_an_earlier_hang_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    ranks = [record(rank, "all_reduce") for rank in range(4)]
    for each in ranks:
        write_record(tmp_path, each)
    files = sorted(tmp_path.iterdir())
    now = files[0].stat().st_mtime
    os.utime(files[1], (now, now - SAME_HANG_SECONDS - 1))
    files[2].write_bytes(files[2].read_bytes()[:9])
    assert gathered_records(tmp_path, ranks[0], 4, 0.0) == [ranks[0], ranks[3]]
