"""How processes take turns: a side is a process of its own that takes so many steps when it is told to, and then waits.

So each side keeps its own threads, memory and compiled code, and still all of them are measured within the same
seconds, whatever the machine does. A side is told `N` on its standard input and answers with one JSON object on what
was its standard output; whatever it prints otherwise goes to standard error.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sides.work import Work

SIDES = Path(__file__).parent


@dataclass(frozen=True)
class Turn:
    """What a side answers after its steps."""

    seconds: float
    loss: float
    peak_mib: float
    """Most memory in use since the turn began: of the GPU, or resident memory of the process."""
    at_rest_mib: float
    """The same before the model was made: Python and its libraries."""


class Turns:
    """The side's end."""

    def __init__(self, device: str) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._device = device
        self._at_rest = 0.0
        self._began = 0.0

    def ready(self) -> None:
        """Libraries are loaded and the model is not: what memory is in use from here on is the training's."""
        self._at_rest = 0.0 if self._device == "cuda" else _status_mib("VmRSS")

    def wait(self) -> int:
        """Until steps are asked for; the number of them, 0 for none any more. The clock starts here."""
        line = sys.stdin.readline()
        if not line.strip():
            return 0
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the high-water mark
        self._began = time.perf_counter()
        return int(line)

    def done(self, loss: Callable[[], float]) -> None:
        """The steps are taken; `loss` is read after the clock has stopped."""
        peak = 0.0
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**20
        seconds = time.perf_counter() - self._began
        if self._device == "cpu":
            peak = _status_mib("VmHWM")
        turn = {"seconds": seconds, "loss": loss(), "peak_mib": peak, "at_rest_mib": self._at_rest}
        print(json.dumps(turn), file=self._answers, flush=True)


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 2**10


class Side:
    """The other end: a process that waits for its turn. Ends it when left."""

    def __init__(self, script: str, work: Work, log: Path) -> None:
        self.script, self._log = script, log
        path = os.pathsep.join(filter(None, [str(SIDES.parents[1]), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        if work.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, str(SIDES / script), work.as_json()],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )

    def steps(self, count: int) -> Turn:
        """Have it take so many steps."""
        self.begin(count)
        return self.turn()

    def begin(self, count: int) -> None:
        """Have it take so many steps while other sides do; `turn` waits for it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `turn` then finds no answer, and says why
            print(count, file=self._process.stdin, flush=True)

    def turn(self) -> Turn:
        """Its answer after the steps that were begun."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.script} failed:\n{self._log.read_text()[-3000:]}")
        told: dict[str, Any] = json.loads(answer)
        return Turn(**told)

    def close(self) -> None:
        """Let it end; its memory is free afterwards."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
