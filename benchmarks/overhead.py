"""What the loop costs: tokens a second of Malmoi's trainer against a bare torch loop with the same kernels.

    python benchmarks/overhead.py [--shape 5M] [--steps 20] [--rounds 12] [--quick]

Both train the same model on the same shards in one process, in turns of some steps, so that the machine's drift
meets both. The bare loop is forward, loss, backward, clip and AdamW over samples that are read before the clock starts;
Malmoi's is `Trainer.train_step` with all that it does in a step, and logging as often as it is set to. Prints the
ratio's median and spread over the rounds and, as the last line, one JSON object.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import in_turns, median, new_parser, parse_options, prepare_work, print_figures, ratios, seconds_of

import malmoi
from malmoi.train.models.compute import configure_compute
from malmoi.train.pretrain_run import Pretraining, build_pretraining, initial_model
from malmoi.train.run_dir import prepare_run
from malmoi.train.trainer import Trainer


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

    def __init__(self, run: Pretraining, config: malmoi.RunSettings) -> None:
        self.plan, self.vocab_size, spec = run.trainer.plan, run.trainee.vocab_size, run.trainee.spec
        self.model = initial_model(config, spec, self.vocab_size, run.special)
        configure_compute(self.model, spec.blocks(self.model), config.train, "fp32", document_mask=False)
        build = malmoi.OPTIMIZERS["adamw"].build
        self.optimizer = build(spec.param_groups(self.model), config.optim, torch.device("cpu"))
        self.sample = 0

    def seconds(self, steps: int) -> float:
        """Train, and return the seconds; reading is not counted."""
        batch = self.plan.micro_batch_size
        batches = [self.plan.task.read(self.sample + number * batch, batch) for number in range(steps)]
        self.sample += steps * batch

        def train() -> None:
            for read in batches:
                inputs, targets = torch.from_numpy(read.inputs), torch.from_numpy(read.targets)
                loss = self.model(inputs, targets, self.vocab_size) / targets.numel()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

        return seconds_of(train)


def train_steps(trainer: Trainer, steps: int) -> None:
    """Do what `Trainer.run` does between two evaluations."""
    for _ in range(steps):
        step = trainer.train_step()
        if step is not None and trainer.state.step % trainer.plan.log.every == 0:
            trainer._log_step(step)


def main() -> None:
    options = parse_options(new_parser(__doc__, "5M", steps=20, rounds=12))
    shape, steps = options.shape, options.steps
    with tempfile.TemporaryDirectory() as name:
        config = malmoi.load_config(prepare_work(Path(name), shape).config, run=Path(name) / "trained")
        run = build_pretraining(config, prepare_run(config))
        bare = BareLoop(run, config)
        ways = {
            "bare": lambda: bare.seconds(steps),
            "malmoi": lambda: seconds_of(lambda: train_steps(run.trainer, steps)),
        }
        seconds = in_turns(ways, options.rounds)
    speeds = [round(steps * shape.batch * shape.block / median(seconds[way], 9), 1) for way in ("bare", "malmoi")]
    print_figures(Figures(*speeds, *ratios(seconds["bare"], seconds["malmoi"], 4)))


if __name__ == "__main__":
    main()
