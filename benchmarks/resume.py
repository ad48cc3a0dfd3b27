"""Time from a start to its first new step, by the step that it resumes from.

    python benchmarks/resume.py [--steps 0 1000 1000000] [--rounds 3]

Malmoi resumes from checkpoints at these steps (the small run's own, with its counters set); the peer is Accelerate's
way, `skip_first_batches` over a streaming data loader, which reads and drops what was trained on. Each start is a
process of its own; they take turns, and figures are medians of the rounds. Accelerate's steps end at --most, since
its time grows with them. Prints a table and, as the last line, one JSON object.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import SHAPES, in_turns, median, new_parser, parse_options, prepare_work, print_figures, seconds_to_text
from sides.turns import Work

import malmoi
from malmoi.checked_json import checked_json, parse_checked_json

SHAPE = SHAPES["tiny"]
PEER = """
import sys
import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel

class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.randint(0, 2000, (64,), generator=generator)

accelerator = Accelerator(cpu=True)
model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=64, vocab_size=2000))
model, optimizer, loader = accelerator.prepare(
    model, torch.optim.AdamW(model.parameters()), DataLoader(Stream(), batch_size=4)
)
for ids in skip_first_batches(loader, int(sys.argv[1])):
    accelerator.backward(model(input_ids=ids, labels=ids).loss)
    optimizer.step()
    print("step done", flush=True)
    break
"""


@dataclass(frozen=True)
class Start:
    """Median seconds from the start of the process to the end of its first step."""

    way: str
    step: int
    seconds: float
    over_step_0: float
    """The same, as a multiple of the time from the way's first step."""


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    figures: list[Start]


def run_at(step: int, source: Path) -> Path:
    """Return a run folder as it is after `step` steps, two before its end."""
    run = source.with_name(f"at-{step}")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("model", "result.json", "metrics.jsonl", "step-*"))
    if step:
        target = run / "checkpoints" / f"step-{step:06d}"
        shutil.copytree(next((source / "checkpoints").glob("step-*")), target)
        state = parse_checked_json((target / "state.json").read_bytes())
        state["state"] |= {"step": step, "samples": step * SHAPE.batch}
        (target / "state.json").write_bytes(checked_json(state))
    return run


def malmoi_seconds(step: int, source: Path, work: Work) -> float:
    """Time a resume from `step`, until the step after it is logged."""
    run = run_at(step, source)
    words = ["--config", work.config, "--run", str(run), "--train.max_steps", str(step + 2), "--log.every", "1"]
    command = [sys.executable, "-m", "malmoi.train", *words]
    return seconds_to_text(command, run / "metrics.jsonl", f'"step": {step + 1},', source.with_name("malmoi.log"))


def peer_seconds(step: int, log: Path) -> float:
    """Time Accelerate's way to the first step after `step`."""
    return seconds_to_text([sys.executable, "-c", PEER, str(step)], log, "step done", log)


def main() -> None:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 1_000, 1_000_000])
    parser.add_argument("--most", type=int, default=20_000, help="step beyond which Accelerate is not asked to go")
    parser.set_defaults(threads=1)
    options = parse_options(parser)
    if options.quick:
        options.steps, options.most = [0, 10], 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, log = folder / "source", folder / "accelerate.log"
        work = prepare_work(folder, SHAPE)
        malmoi.train(malmoi.load_config(work.config, run=source, train={"max_steps": 2}))
        ways: dict[tuple[str, int], Callable[[], float]] = {}
        for step in options.steps:
            ways["malmoi", step] = lambda step=step: malmoi_seconds(step, source, work)
        for step in sorted({*(step for step in options.steps if step <= options.most), options.most}):
            ways["accelerate, streaming", step] = lambda step=step: peer_seconds(step, log)
        seconds = in_turns(ways, options.rounds, warm_up=0)
    medians = {key: median(taken, 2) for key, taken in sorted(seconds.items())}
    first = {way: value for (way, _), value in reversed(medians.items())}
    figures = [Start(way, step, value, round(value / first[way], 2)) for (way, step), value in medians.items()]
    print_figures(Figures(figures))


if __name__ == "__main__":
    main()
