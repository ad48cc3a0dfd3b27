"""Ranks of a scaling benchmark: each a process on a core of its own, that takes steps when it is told to.

A rank is told `go` on its standard input, takes the steps of a turn, answers with one JSON object on standard output,
and waits. `python benchmarks/sides/ranks.py JSON` is a rank; the other end is `Rank`.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from configs.schema import (
    CorpusSettings,
    DataSettings,
    ModelSettings,
    OptimizerName,
    RunSettings,
    TokenizerSettings,
    TrainSettings,
)

REDUCED_BYTES = (400_000, 40_000_000)
"""Of the all-reduces that torch's ranks time before they train."""
CORPUS = "reviews.jsonl"
"""Within the folder."""
Way = Literal["malmoi", "torch"]


@dataclass(frozen=True)
class RankWork:
    """What each rank computes, the same however many there are."""

    folder: str
    layers: int
    width: int
    block: int
    vocab_size: int
    batch: int
    """Samples a rank and step."""
    steps: int
    """Of a turn."""
    optimizer: OptimizerName
    """Malmoi's."""


@dataclass(frozen=True)
class Place:
    """Which rank of how many, and the core that it runs on."""

    way: Way
    rank: int
    ranks: int
    core: int


def run_settings(work: RankWork, ranks: int) -> RunSettings:
    """Weak scaling: as many samples a rank however many there are."""
    return RunSettings(
        run=str(Path(work.folder) / f"run-{ranks}"),
        corpus=CorpusSettings(input=(str(Path(work.folder) / CORPUS),)),
        tokenizer=TokenizerSettings(vocab_size=work.vocab_size),
        data=DataSettings(cache=str(Path(work.folder) / "cache")),
        model=ModelSettings(
            work.layers,
            max(1, work.width // 64),
            work.width,
            work.block,
        ),
        train=TrainSettings(
            global_batch=ranks * work.batch,
            micro_batch=work.batch,
            steps=10**6,
            precision="fp32",
            optimizer=work.optimizer,
            save_every=0,
            evaluate_every=0,
        ),
    )


class Turns:
    """The worker's end of the pipe: a line in allows a turn, a line out says how long it took."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._began = 0.0

    def begin(self) -> None:
        """Wait for the word."""
        if not sys.stdin.readline():
            os._exit(0)  # the parent is done: no rank waits for another's last step
        self._began = time.perf_counter()

    def step(self) -> None:
        """A step is done."""
        self._done += 1
        if self._done % self._steps == 0:
            print(json.dumps({"seconds": (time.perf_counter() - self._began) / self._steps}), flush=True)
            self.begin()


def malmoi_rank(work: RankWork, ranks: int) -> None:
    """`Training.run`, whose display marks the steps."""
    from train.display import TrainingDisplay
    from train.loop import Training
    from train.run_folder import prepare_run
    from train.session import ready
    from train.signals import StopRequest

    settings = run_settings(work, ranks)
    made = ready(settings, prepare_run(settings))
    turns = Turns(work.steps)

    class Marked(TrainingDisplay):
        def start(self, first_step: int, steps: int) -> None:
            turns.begin()

        def step(self, done: int) -> None:
            turns.step()

    with Marked(False) as display:
        Training(made.plan, made.backend, made.placement, display).run(StopRequest())


def torch_rank(work: RankWork, ranks: int) -> None:
    """The least that trains the same shape with DDP."""
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    settings = run_settings(work, ranks)
    shape, vocab_size = settings.model, work.vocab_size
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=shape.block_size,
            n_embd=shape.n_embd,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    wrapped: torch.nn.Module = model
    if ranks > 1:
        distributed.init_process_group("gloo")
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, vocab_size, (work.batch, shape.block_size))
    turns = Turns(work.steps)
    if ranks > 1:
        for size in REDUCED_BYTES:
            numbers, taken = torch.ones(size // 4), []
            for _ in range(8):
                distributed.barrier()
                began = time.perf_counter()
                distributed.all_reduce(numbers)
                taken.append(time.perf_counter() - began)
            print(json.dumps({"bytes": size, "seconds": statistics.median(taken)}), flush=True)
    turns.begin()
    while True:
        logits = wrapped(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.step()


class Rank:
    """A rank in a process of its own, on a core of its own."""

    def __init__(self, work: RankWork, place: Place, port: int) -> None:
        ranks_env = {
            "RANK": place.rank,
            "LOCAL_RANK": place.rank,
            "WORLD_SIZE": place.ranks,
            "LOCAL_WORLD_SIZE": place.ranks,
        }
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
        launch = ranks_env | address if place.ranks > 1 else address
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"work": asdict(work), "place": asdict(place)})],
            env={**os.environ, **{name: str(value) for name, value in launch.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        """Allow a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def said(self) -> dict[str, float]:
        """The next line of figures."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                record: dict[str, float] = json.loads(line)
                return record
        raise SystemExit(f"a rank ended with exit code {self._process.wait()}")

    def end(self) -> None:
        """Close its pipe, at which it leaves, and wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    told = json.loads(sys.argv[1])
    work, place = RankWork(**told["work"]), Place(**told["place"])
    os.sched_setaffinity(0, {place.core})
    (malmoi_rank if place.way == "malmoi" else torch_rank)(work, place.ranks)


if __name__ == "__main__":
    main()
