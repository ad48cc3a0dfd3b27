"""Which of a run's ranks this process is, by the variables that its launcher sets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from malmoi.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run."""

    rank: int
    """From 0 to below `count`."""
    count: int
    """1: there is no other."""
    local_count: int
    """Ranks on this node; 0: the launcher does not say."""


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return the ranks that the launcher started. Without WORLD_SIZE there is one, whatever the other variables are: a
    launcher sets them all, and one alone was left in the environment.

    Raises:
        UserError: a variable is no number, or the rank is beyond the last.
    """
    count = whole_number(environment, "WORLD_SIZE", 1, least=1)
    if count == 1 and "WORLD_SIZE" not in environment:
        return Ranks(0, 1, 0)
    rank = whole_number(environment, "RANK", 0)
    if rank >= count:
        raise UserError(
            f"RANK {rank} of WORLD_SIZE {count}: ranks are 0 to {count - 1}; unset both where no launcher set them, or "
            "give each process its own"
        )
    return Ranks(rank, count, whole_number(environment, "LOCAL_WORLD_SIZE", 0))


def is_main_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is rank 0, as its launcher says; true without one, whatever RANK says."""
    return environment.get("WORLD_SIZE", "1") == "1" or environment.get("RANK", "0") == "0"


def counted_ranks(count: int) -> str:
    """Return `1 rank`, `2 ranks`, ..., for messages."""
    return f"{count} rank{'' if count == 1 else 's'}"


def whole_number(environment: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """Return the whole number that a variable holds, or `default` where it is not set.

    Raises:
        UserError: it holds no whole number of `least` or more.
    """
    text = environment.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        shown = text or "is empty"
        raise UserError(
            f"{name} {shown}: a launcher sets this environment variable to a whole number of {least} or more; unset "
            "it, or correct it where it is set"
        )
    return int(text)
