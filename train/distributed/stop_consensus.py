"""Signals that ask a run to stop, and the ranks' agreement on them, reached during the backward pass."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, distributed

from malmoi.train.distributed.async_copy import AsyncScalar
from malmoi.train.distributed.dist_env import DistEnv

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


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
