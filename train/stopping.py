"""Whether any rank was asked to stop: the ranks agree while gradients are computed, so that no step waits for it."""

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from train.signals import StopRequest


class StopAgreement:
    """One question at a time, which all ranks must ask and answer alike."""

    def __init__(self, stop: StopRequest, accelerator: Accelerator) -> None:
        self._stop, self._accelerator = stop, accelerator
        self._heard: Tensor | None = None
        self._work: distributed.Work | None = None

    def ask(self) -> None:
        """Start to add up over the ranks who has been asked to stop until now; returns at once."""
        self._heard = torch.tensor(int(self._stop.signal_name is not None), device=self._accelerator.device)
        if self._accelerator.num_processes > 1:
            self._work = distributed.all_reduce(self._heard, async_op=True)

    def answer(self) -> str | None:
        """The signal that any rank had seen at the last `ask`, in words; none where there was none."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        if self._heard is None or int(self._heard) == 0:
            return None
        return self._stop.signal_name or "a signal to another rank"

    def now(self) -> str | None:
        """Ask, and wait for the answer."""
        self.ask()
        return self.answer()
