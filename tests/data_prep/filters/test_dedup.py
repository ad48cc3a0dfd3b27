"""What was kept is remembered, however often the build that kept it is killed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from malmoi.configs.corpus import CleaningSettings
from malmoi.data_prep.filters.dedup import DIGEST_BYTES, KEPT_FILE, PERMUTATIONS, Duplicates
from malmoi.data_prep.pipeline.resume_state import nothing_done, restore_commit, write_commit

SETTINGS = CleaningSettings(exact_dedup=True)
NO_SIGNATURES = np.zeros((0, PERMUTATIONS), np.uint32)


def digests(first: int, last: int) -> np.ndarray:
    rows = [number.to_bytes(DIGEST_BYTES, "little") for number in range(first, last)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, DIGEST_BYTES)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The work folder of a build that kept 100 documents, committed them, kept 50 more and was killed."""
    work = tmp_path / ".work"
    work.mkdir()
    first = Duplicates(SETTINGS, work, 0)
    first.reasons(digests(0, 100), NO_SIGNATURES)
    write_commit(replace(nothing_done(), records=100, kept_bytes=first.state()), work)
    first.reasons(digests(100, 150), NO_SIGNATURES)
    first.close()
    return work


def test_a_build_that_is_taken_over_and_killed_again_and_again_forgets_nothing(work: Path) -> None:
    killed = []
    for _ in range(3):
        commit = restore_commit(work.parent, work)
        assert commit.records == 100
        # Kept open, as a process that is killed leaves it: nothing more is written.
        killed.append(Duplicates(SETTINGS, work, commit.kept_bytes))
        assert (work / KEPT_FILE).stat().st_size == 100 * DIGEST_BYTES
    last = killed[-1]
    assert last.reasons(digests(0, 100), NO_SIGNATURES) == ["exact_duplicate"] * 100
    assert last.reasons(digests(100, 150), NO_SIGNATURES) == [None] * 50
    assert last.state() == 150 * DIGEST_BYTES == (work / KEPT_FILE).stat().st_size
    for build in killed:
        build.close()


@pytest.mark.parametrize("harm", ["missing", "short"])
def test_a_commit_whose_memory_of_duplicates_is_incomplete_is_not_used(work: Path, harm: str) -> None:
    if harm == "missing":
        (work / KEPT_FILE).unlink()
    else:
        (work / KEPT_FILE).write_bytes((work / KEPT_FILE).read_bytes()[: 100 * DIGEST_BYTES - 1])
    assert restore_commit(work.parent, work) == nothing_done()
