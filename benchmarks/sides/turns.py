"""How processes take turns: a side is a process of its own that takes so many steps when asked to, and then waits.

So each side keeps its own threads, memory and compiled code, and all of them are measured within the same seconds,
whatever the machine does. A side reads a number of steps from its standard input and answers with one JSON object on
what was its standard output; whatever else it prints goes to standard error. This module imports no torch, so that a
side's start is its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SIDES = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """A model and its micro-batch."""

    layers: int
    width: int
    vocab: int
    block: int
    batch: int

    @property
    def heads(self) -> int:
        """Of 64 channels each, as in every GPT-2."""
        return max(1, self.width // 64)

    @property
    def model(self) -> dict[str, int]:
        """The settings `model` of a run."""
        return {"n_layer": self.layers, "n_head": self.heads, "n_embd": self.width, "block_size": self.block}


@dataclass(frozen=True)
class Work(Shape):
    """What a side trains: one model on one file of tokens. Passed to its process as JSON."""

    tokens: str
    """File of uint16 tokens: the first training shard's `.bin`."""
    config: str
    """YAML of the same run for `malmoi train`."""
    device: str
    """cpu or cuda."""
    precision: str
    """fp32 or bf16."""
    compile: bool = False


def read_work() -> Work:
    """Return what this process, a side, is to train."""
    return Work(**json.loads(sys.argv[1]))


@dataclass(frozen=True)
class Turn:
    """What a side answers after its steps."""

    seconds: float
    peak_mib: float
    """Peak memory since the turn began: of the GPU, or resident memory of the process."""
    at_rest_mib: float
    """The same before the model was made: Python and its libraries."""


class Turns:
    """The side's end. To be made when libraries are loaded and the model is not."""

    def __init__(self, device: str) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._device = device
        self._at_rest = 0.0 if device == "cuda" else _status_mib("VmRSS")
        self._left = 0
        self._began = 0.0

    def begin(self) -> None:
        """Wait until steps are requested, and start the clock; end the process where no more will be."""
        line = sys.stdin.readline()
        if not line.strip():
            os._exit(0)  # at once: no rank waits for another's last step
        self._left = int(line)
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets the high-water mark
        self._began = time.perf_counter()

    def step(self) -> None:
        """Count a step; after the last one of a turn answer, and wait for the next turn."""
        self._left -= 1
        if self._left:
            return
        peak = 0.0
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**20
        seconds = time.perf_counter() - self._began
        turn = Turn(seconds, peak or _status_mib("VmHWM"), self._at_rest)
        print(json.dumps(asdict(turn)), file=self._answers, flush=True)
        self.begin()


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 2**10


@dataclass(frozen=True)
class Rank:
    """One of several processes that train together, on a core of its own; alone it knows of no other."""

    rank: int
    ranks: int
    core: int
    port: int
    """Where they meet."""

    def environment(self) -> dict[str, str]:
        """Return the variables that a launcher sets."""
        if self.ranks == 1:
            return {"OMP_NUM_THREADS": "1"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port, "OMP_NUM_THREADS": 1}
        place = {"RANK": self.rank, "LOCAL_RANK": self.rank, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks}
        return {name: str(value) for name, value in {**address, **place}.items()}


def environment_on(device: str, **more: str) -> Mapping[str, str]:
    """Return the environment of a process that computes on a device."""
    path = os.pathsep.join(filter(None, [str(SIDES.parent), os.environ.get("PYTHONPATH")]))
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", **hidden, **more}


class Side:
    """The other end: a process that waits for its turn. Ends it when left."""

    def __init__(
        self, script: str, work: Work, log: Path, rank: Rank | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        """Start a side.

        Args:
            variables: environment variables of its own.
        """
        self.script, self._log = script, log
        more = {**({} if rank is None else rank.environment()), **(variables or {})}
        cores = os.sched_getaffinity(0) if rank is None else {rank.core}
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, str(SIDES / f"{script}.py"), json.dumps(asdict(work))],
            env=environment_on(work.device, **more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w", encoding="utf-8"),
            encoding="utf-8",
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
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
        """Return its answer after the steps that were begun."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.script} failed:\n{self._log.read_text(encoding='utf-8')[-3000:]}")
        return Turn(**json.loads(answer))

    def close(self) -> None:
        """Let it end; its memory is free afterwards."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
