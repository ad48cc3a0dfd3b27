"""What the loop costs: tokens a second of a whole Malmoi run against a bare torch loop with the same kernels.

    python benchmarks/overhead.py [--layers 4 --width 256 --block 128 --batch 8] [--steps 20] [--rounds 12]

Both train the same model on the same shards in one process, in turns of some steps, so that the machine's drift
meets both. The bare loop is forward, loss, backward, clip and AdamW over samples read ahead of time; Malmoi's is
`Training.update` with all that it does in a step, and logging as often as it is set to. Prints the ratio's median
and spread over the rounds and, as the last line, one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch

from configs.schema import (
    CorpusSettings,
    DataSettings,
    ModelSettings,
    RunSettings,
    TokenizerSettings,
    TrainSettings,
)
from train.display import TrainingDisplay
from train.kernels import configured
from train.loop import Training
from train.optim import new_optimizer
from train.run_folder import prepare_run
from train.session import Ready, initial_model, ready


@dataclass(frozen=True)
class Figures:
    """Medians of the rounds, and the smallest and largest ratio."""

    bare_tokens_a_second: float
    malmoi_tokens_a_second: float
    ratio: float
    lowest: float
    highest: float


class BareLoop:
    """The least that trains the same model on the same samples."""

    def __init__(self, made: Ready, settings: RunSettings) -> None:
        self.plan, self.task = made.plan, made.task
        model = initial_model(settings, made.task.vocab_size, made.special)
        self.model = configured(model, settings.train, "fp32", document_mask=False)
        self.optimizer = new_optimizer(self.model, settings.train, torch.device("cpu"))
        self.sample = 0

    def steps(self, count: int) -> float:
        """Train, and return the seconds; reading is not counted."""
        batch, block, vocab_size = self.plan.micro_batch, self.task.samples.block_size, self.task.vocab_size
        batches = [self.task.samples.read(self.sample + number * batch, batch) for number in range(count)]
        self.sample += count * batch
        began = time.perf_counter()
        for read in batches:
            inputs, labels = torch.from_numpy(read.inputs), torch.from_numpy(read.labels)
            loss = self.model(inputs, labels, vocab_size) / (batch * block)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def malmoi_steps(training: Training, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        update = training.update()
        if training.progress.step % training.plan.train.log_every == 0:
            training._log(update)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, TrainingDisplay(False) as display:
        settings = RunSettings(
            run=str(Path(folder) / "run"),
            corpus=CorpusSettings(input=("package:data_prep/demo_text/film_reviews.jsonl.gz",)),
            tokenizer=TokenizerSettings(vocab_size=8000),
            data=DataSettings(),
            model=ModelSettings(options.layers, max(1, options.width // 64), options.width, options.block),
            train=replace(
                TrainSettings(), global_batch=options.batch, micro_batch=options.batch, steps=10**6, precision="fp32"
            ),
        )
        made = ready(settings, prepare_run(settings))
        training, bare = Training(made.plan, made.backend, made.placement, display), BareLoop(made, settings)
        display.start(0, 10**6)
        tokens = options.steps * options.batch * options.block
        ours, theirs = [], []
        for number in range(options.rounds + 1):  # the first round warms up
            # Who goes first changes from round to round, so that a machine that slows down favours neither.
            if number % 2:
                its, mine = bare.steps(options.steps), malmoi_steps(training, options.steps)
            else:
                mine, its = malmoi_steps(training, options.steps), bare.steps(options.steps)
            if number:
                theirs.append(tokens / its)
                ours.append(tokens / mine)
    ratios = [mine / its for mine, its in zip(ours, theirs, strict=True)]
    figures = Figures(
        round(statistics.median(theirs), 1),
        round(statistics.median(ours), 1),
        round(statistics.median(ratios), 4),
        round(min(ratios), 4),
        round(max(ratios), 4),
    )
    print(f"bare torch loop   {figures.bare_tokens_a_second:,.0f} tokens/s")
    print(f"malmoi            {figures.malmoi_tokens_a_second:,.0f} tokens/s")
    spread = f"{figures.lowest:.1%} to {figures.highest:.1%} in {options.rounds} rounds"
    print(f"ratio             {figures.ratio:.1%} ({spread})")
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
