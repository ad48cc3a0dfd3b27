"""Ranks meet before they share anything: one that does not come is named, and none is waited for in silence."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from malmoi.errors import RunFailed, UserError, first_line
from malmoi.train.distributed.launch_env import LaunchEnv

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

MEETING_SECONDS = 120.0
"""How long ranks that were started together wait for each other before anything is prepared."""
NOTE_SECONDS = 20.0
"""After which a rank says whom it waits for."""
POLL_SECONDS = 0.1
GONE_SECONDS = 10.0
"""How long a launcher's store, which is there before its ranks are, may refuse them."""
MOST_NAMED = 8

logger = logging.getLogger(__name__)


@contextmanager
def met_ranks(launch: LaunchEnv, stage: str, seconds: float = MEETING_SECONDS) -> Iterator[None]:
    """Wait until every rank has come to `stage`. Meanwhile rank 0, where no launcher does, serves the store at
    MASTER_ADDR and MASTER_PORT through which torch's process group is made.

    Raises:
        UserError: MASTER_PORT is taken.
        RunFailed: ranks did not come within `seconds`, rank 0 left, or the launcher of these ranks has ended.
    """
    if launch.num_ranks == 1:
        yield
        return
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    place = _Place.of(launch, stage, os.environ)
    attendance = _Attendance(place)
    threading.Thread(target=attendance.attend, name="rendezvous", daemon=True).start()
    try:
        _wait(attendance, seconds)
        yield
    finally:
        attendance.ends.set()


@dataclass(frozen=True)
class _Place:
    """Where the ranks of one start meet."""

    host: str
    port: int
    rank: int
    num_ranks: int
    prefix: str
    """Of the store's keys: the ranks of another run or start, though they have the same address, are not these."""
    is_launchers: bool
    """Whether the store is the launcher's, which is there before its ranks."""
    is_nodes_first: bool

    @classmethod
    def of(cls, launch: LaunchEnv, stage: str, environment: Mapping[str, str]) -> "_Place":
        start = [environment.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
        return cls(
            host=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            rank=launch.rank,
            num_ranks=launch.num_ranks,
            prefix="/".join(["malmoi", *start, str(launch.num_ranks), stage]),
            is_launchers=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            is_nodes_first=environment["LOCAL_RANK"] == "0",
        )

    @property
    def serves(self) -> bool:
        return self.rank == 0 and not self.is_launchers

    def key(self, rank: int) -> str:
        return f"rank-{rank}"


@dataclass
class _Attendance:
    """One rank's coming, in a thread of its own: torch's calls of a store may hang beyond every time limit."""

    place: _Place
    parent: int = field(default_factory=os.getppid)
    has_met: threading.Event = field(default_factory=threading.Event)
    ends: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    missing: Sequence[int] = ()
    refusal: str = ""
    """Why the store was not reached until now."""

    def attend(self) -> None:
        try:
            self._attend()
        except Exception as error:  # reported by the thread that waits
            self.error = error

    def _attend(self) -> None:
        from torch.distributed import DistError, PrefixStore  # type: ignore[attr-defined]

        place = self.place
        self.missing = [0] if place.rank else range(1, place.num_ranks)
        server = _served_store(place) if place.serves else None
        line = self._line_to_store()
        if line is None:
            return
        with line:
            try:
                client = server or _store(place, is_master=False)
                store = PrefixStore(place.prefix, client)
                store.set(place.key(place.rank), "")
                self._await_others(store, line)
            except DistError as error:
                raise RunFailed(_left(place)) from error
            # A served store ends with this function.
            self.ends.wait()

    def _await_others(self, store: "Store", line: socket.socket) -> None:
        place, refreshed = self.place, time.monotonic()
        keys = [place.key(rank) for rank in range(place.num_ranks)]
        # The ranks together ask the store some 20,000 times a second at most.
        interval = max(1.0, place.num_ranks**2 / 20_000 if place.rank else 0.0)
        if place.rank and store.check([keys[0]]):
            self.missing = ()
        while not self.ends.is_set():
            if _has_ended(line):
                raise RunFailed(_left(place))
            # Rank 0 asks for all, the others for its answer: what the store is asked grows with the ranks only.
            if store.check(keys if place.rank == 0 else ["all"]):
                store.set("all", "")
                self.missing = ()
                self.has_met.set()
                return
            if time.monotonic() - refreshed > interval:
                self.missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
                refreshed = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _line_to_store(self) -> socket.socket | None:
        """Return a connection that ends with the store's process; None: nobody waits for it any more.

        Torch's own client warns with a stack for each try, and finds out that the store is gone in the same way.
        """
        began = time.monotonic()
        while not self.ends.is_set():
            try:
                line = socket.create_connection((self.place.host, self.place.port), timeout=NOTE_SECONDS)
                line.setblocking(False)
                return line
            except OSError as error:
                self.refusal = error.strerror or str(error)
                if self.place.is_launchers and time.monotonic() - began > GONE_SECONDS:
                    raise RunFailed(_launcher_is_gone(self.place, self.refusal)) from error
            time.sleep(POLL_SECONDS)
        return None


def _wait(attendance: _Attendance, seconds: float) -> None:
    place, began, is_noted = attendance.place, time.monotonic(), False
    while not attendance.has_met.wait(POLL_SECONDS):
        if attendance.error is not None:
            raise attendance.error
        # The parent of a rank without a launcher may be a shell, which may end.
        if place.is_launchers and os.getppid() != attendance.parent:
            raise RunFailed(_launcher_is_gone(place, "its process has ended"))
        waited, missing = time.monotonic() - began, attendance.missing
        where = f"{place.host}:{place.port}" + (f" ({attendance.refusal})" if attendance.refusal else "")
        if waited > NOTE_SECONDS and not is_noted:
            is_noted = True
            if _speaks(place, missing):
                logger.warning(
                    "%s of %d not here after %.0f s, waiting at %s", _named(missing), place.num_ranks, waited, where
                )
        if waited > seconds:
            raise RunFailed(
                f"rank {place.rank}: {_named(missing)} of {place.num_ranks} did not come to {where} within "
                f"{seconds:.0f} s; see what they say themselves, and whether each was started with this MASTER_ADDR, "
                "MASTER_PORT and WORLD_SIZE"
            )


def _speaks(place: _Place, missing: Sequence[int]) -> bool:
    """Return whether it is this rank that says whom all wait for."""
    if 0 in missing:
        return place.is_nodes_first or place.rank == 1
    return place.rank == 0


def _named(ranks: Sequence[int]) -> str:
    if not ranks:
        return "some ranks"
    named = ", ".join(map(str, ranks[:MOST_NAMED]))
    more = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
    return f"rank{'' if len(ranks) == 1 else 's'} {named}{more}"


def _served_store(place: _Place) -> "TCPStore":
    from torch.distributed import DistNetworkError

    try:
        return _store(place, is_master=True)
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise RunFailed(f"rank 0: cannot serve port {place.port} ({first_line(error)})") from error
        raise UserError(
            f"MASTER_PORT {place.port}: another process of this machine uses it; start the ranks with another port"
        ) from error


def _store(place: _Place, is_master: bool) -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # Shared with the store that torch makes at the same address for its process group.
    return TCPStore(
        place.host,
        place.port,
        None,
        is_master=is_master,
        wait_for_workers=False,
        multi_tenant=True,
        timeout=timedelta(seconds=MEETING_SECONDS),
    )


def _has_ended(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _left(place: _Place) -> str:
    if place.is_launchers:
        return _launcher_is_gone(place, "its store has ended")
    return f"rank {place.rank}: rank 0 left before all ranks had met; see what it says itself, and start all again"


def _launcher_is_gone(place: _Place, why: str) -> str:
    return f"rank {place.rank}: the launcher at {place.host}:{place.port} is gone ({why}); start the ranks again"
