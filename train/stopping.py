"""Whether any rank was asked to stop: the ranks agree while gradients are computed, so that no step waits for it."""

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from train.signals import StopRequest
from train.transfer import HostNumber


class StopAgreement:
    """One question at a time, which all ranks must ask and answer alike."""

    def __init__(self, stop: StopRequest, accelerator: Accelerator) -> None:
        self._stop, self._accelerator = stop, accelerator
        self._heard: HostNumber | None = None
        on_gpu = accelerator.device.type == "cuda" and accelerator.num_processes > 1
        self._stream = torch.cuda.Stream(accelerator.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._asked: tuple[Tensor, distributed.Work] | None = None

    def ask(self) -> None:
        """Start to add up over the ranks who has been asked to stop until now; returns at once."""
        own = int(self._stop.signal_name is not None)
        if self._accelerator.num_processes == 1:
            self._heard = HostNumber(torch.tensor(own))
            return
        # Filled where it is: to copy a number to a GPU, the host would wait for it.
        heard = torch.full((), own, device=self._accelerator.device)
        work = distributed.all_reduce(heard, async_op=True)
        self._asked = heard, work
        if self._stream is not None:
            # The answer travels beside the backward pass, not behind it.
            with torch.cuda.stream(self._stream):
                self._heard = self._sum(heard, work)

    def answer(self) -> str | None:
        """The signal that any rank had seen at the last `ask`, in words; none where there was none."""
        if self._asked is not None and self._stream is None:
            self._heard = self._sum(*self._asked)
        is_heard = self._heard is not None and self._heard.value() > 0
        self._asked = self._heard = None
        return (self._stop.signal_name or "a signal to another rank") if is_heard else None

    @staticmethod
    def _sum(heard: Tensor, work: distributed.Work) -> HostNumber:
        work.wait()
        return HostNumber(heard)

    def now(self) -> str | None:
        """Ask, and wait for the answer."""
        self.ask()
        return self.answer()
