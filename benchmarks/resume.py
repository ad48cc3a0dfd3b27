"""Time from a start to its first new step, by the step that it goes on from.

    python benchmarks/resume.py [--steps 0 1000 1000000] [--rounds 3]

Malmoi goes on from checkpoints at these steps (the small run's own, with its counters set); the peer is Accelerate's
way, `skip_first_batches` over a streaming data loader, which reads and drops what was trained on. Each start is a
process of its own; they take turns, and figures are medians of the rounds. Accelerate's steps end at --most, since
its time grows with them. Prints a table and, as the last line, one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
STEPS_LEFT = 2
CONFIG = """
run: {run}
corpus: {{input: ['package:data_prep/demo_text/film_reviews.jsonl.gz']}}
tokenizer: {{vocab_size: 4000}}
data: {{cache: {cache}}}
model: {{n_layer: 2, n_head: 2, n_embd: 64, block_size: 64}}
train: {{global_batch: 4, micro_batch: 4, steps: {steps}, schedule: constant, log_every: 1, save_every: 0, \
evaluate_every: 0, evaluate_tokens: 64}}
sampling: {{max_new_tokens: 1, num_return_sequences: 1}}
"""
PEER = """
import sys, time
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
    print("step", flush=True)
    break
"""


@dataclass(frozen=True)
class Figures:
    """Median seconds from the start of the process to the end of its first step."""

    way: str
    step: int
    seconds: float
    over_step_0: float
    """The same, as a multiple of the time from step 0."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def malmoi_seconds(run: Path, step: int) -> float:
    """Start, and wait until the step after `step` is logged."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "train", "--config", str(run / "benchmark.yaml")],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    metrics = run / "metrics.jsonl"
    wanted = f'"step": {step + 1},'
    while process.poll() is None and not (metrics.is_file() and wanted in metrics.read_text()):
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    _, log = process.communicate()
    if process.returncode:
        sys.exit(log.decode()[-3000:])
    return seconds


def run_at(step: int, source: Path, work: Path) -> Path:
    """A run folder as it stands after `step` steps."""
    run = work / f"at-{step}"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("model", "result.json", "metrics.jsonl", "step-*"))
    (run / "benchmark.yaml").write_text(CONFIG.format(run=run, cache=work / "cache", steps=step + STEPS_LEFT))
    if step:
        newest = next((source / "checkpoints").glob("step-*"))
        target = run / "checkpoints" / f"step-{step:06d}"
        shutil.copytree(newest, target)
        state = json.loads((target / "state.json").read_text())
        state["progress"] |= {"step": step, "samples": step * 4}
        (target / "state.json").write_text(json.dumps(state))
    return run


def peer_seconds(step: int) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", PEER, str(step)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"step\n"
    seconds = time.perf_counter() - began
    process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 1_000, 1_000_000])
    parser.add_argument("--most", type=int, default=20_000, help="step beyond which Accelerate is not asked to go")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[tuple[str, int], list[float]] = {}
    peer_steps = sorted({*(step for step in options.steps if step <= options.most), options.most})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = work / "source"
        source.mkdir()
        (source / "benchmark.yaml").write_text(CONFIG.format(run=source, cache=work / "cache", steps=STEPS_LEFT))
        malmoi_seconds(source, 0)
        for _ in range(options.rounds):
            for step in options.steps:
                run = run_at(step, source, work)
                seconds.setdefault(("malmoi", step), []).append(malmoi_seconds(run, step))
            for step in peer_steps:
                seconds.setdefault(("accelerate, streaming", step), []).append(peer_seconds(step))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    figures = [
        Figures(way, step, round(value, 2), round(value / medians[way, min(s for w, s in medians if w == way)], 2))
        for (way, step), value in sorted(medians.items())
    ]
    print(f"{'way':<24}{'step':>9}{'seconds':>9}{'over step 0':>13}")
    for f in figures:
        print(f"{f.way:<24}{f.step:>9}{f.seconds:>9.2f}{f.over_step_0:>12.2f}x")
    print(json.dumps({"figures": [asdict(figure) for figure in figures]}))


if __name__ == "__main__":
    main()
