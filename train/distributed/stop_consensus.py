"""Signals that ask a run to stop, and the ranks' agreement on them, reached during the backward pass."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, distributed

from malmoi.errors import EXIT_STOPPED
from malmoi.ranks import launched_ranks
from malmoi.train.distributed.async_copy import AsyncScalar
from malmoi.train.distributed.dist_env import DistEnv

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SETUP_SECONDS = 5.0
"""How long after a stop signal ranks have to come to the training loop and agree on it: well below the 30 seconds after
which launchers kill."""


class StopRequest:
    """Whether a stop signal has arrived. A second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the stop signals of this process meanwhile.

        After a stop, SIGTERM and SIGUSR1 are ignored where they would end the process: Slurm and a job script may each
        send one, and the later would turn the exit code into that of a killed rank, for which Slurm kills the ranks
        that are still saving. The Python API sets the handlers back.
        """
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                is_deadly = handler is signal.SIG_DFL and number != signal.SIGINT
                if is_deadly and self.signal_name is not None:
                    signal.signal(number, signal.SIG_IGN)
                # None: set by another language, which alone could set it again.
                elif handler is not None:
                    signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


@contextmanager
def stop_ends_setup() -> Iterator[None]:
    """While one of several ranks sets up, end its process `SETUP_SECONDS` after a stop signal.

    Python's signal handlers wait for the main thread, which may wait inside torch for a rank that has died. Nothing is
    lost: no step was taken since the last checkpoint.
    """
    if launched_ranks().count == 1:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Written to by the C handler itself.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_after_signal, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _end_after_signal(reader: int) -> None:
    """End the process `SETUP_SECONDS` after the number of a stop signal was read from `reader`, unless that ends."""
    first: tuple[str, float] | None = None
    while True:
        left = None if first is None else first[1] + SETUP_SECONDS - time.monotonic()
        ready, _, _ = select.select([reader], [], [], left if left is None else max(0.0, left))
        if first is not None and not ready:
            print(
                f"malmoi train: {first[0]} before the first step: nothing was trained since the last checkpoint; run "
                "again to resume",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_STOPPED)
        numbers = os.read(reader, 64)
        if not numbers:
            return
        stops = [signal.Signals(number).name for number in numbers if number in STOP_SIGNALS]
        if first is None and stops:
            first = stops[0], time.monotonic()


class StopConsensus:
    """One question at a time, which all ranks must ask and read alike."""

    def __init__(self, stop: StopRequest, env: DistEnv) -> None:
        self._stop, self._device = stop, env.device
        self._is_shared = env.dims.dp_size > 1
        self._answer: AsyncScalar | None = None
        on_gpu = self._is_shared and env.device.type == "cuda"
        self._stream = torch.cuda.Stream(env.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._asked: tuple[Tensor, distributed.Work] | None = None

    def ask(self) -> None:
        """Start an all-reduce of who has been asked to stop until now; returns at once."""
        own = int(self._stop.signal_name is not None)
        if not self._is_shared:
            self._answer = AsyncScalar(torch.tensor(own))
            return
        # Filled on the device: to copy a number to a GPU, the host would wait for it.
        total = torch.full((), own, device=self._device)
        work = distributed.all_reduce(total, async_op=True)
        self._asked = total, work
        if self._stream is not None:
            # On a stream of its own the answer need not wait for the backward pass.
            with torch.cuda.stream(self._stream):
                self._answer = self._sum(total, work)

    def answer(self) -> str | None:
        """The signal that any rank had received at the last `ask`, in words; None where there was none."""
        if self._asked is not None and self._stream is None:
            self._answer = self._sum(*self._asked)
        is_requested = self._answer is not None and self._answer.value() > 0
        self._asked = self._answer = None
        return (self._stop.signal_name or "a signal to another rank") if is_requested else None

    @staticmethod
    def _sum(total: Tensor, work: distributed.Work) -> AsyncScalar:
        work.wait()
        return AsyncScalar(total)

    def now(self) -> str | None:
        """Ask, and wait for the answer."""
        self.ask()
        return self.answer()
