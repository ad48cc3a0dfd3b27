"""Malmoi's own loop, `Trainer.run` with all that it does in a step, set up by its code from the same YAML."""

import os

from sides.turns import Turns, read_work

import malmoi
from malmoi.train.distributed.stop_consensus import StopRequest
from malmoi.train.metrics.progress_bar import ProgressBar
from malmoi.train.pretrain_run import build_pretraining
from malmoi.train.run_dir import prepare_run


class TakesTurns(ProgressBar):
    """Shows nothing; holds the trainer between two steps until its next turn."""

    def __init__(self, turns: Turns) -> None:
        super().__init__(shown=False)
        self._turns = turns

    def start(self, first_step: int, max_steps: int) -> None:
        self._turns.begin()

    def advance(self, done: int) -> None:
        self._turns.step()


def main() -> None:
    work, ranks = read_work(), int(os.environ.get("WORLD_SIZE", "1"))
    turns = Turns(work.device)
    # As many samples a rank, however many there are.
    train = {"compile": work.compile, "precision": work.precision, "global_batch_size": ranks * work.batch}
    config = malmoi.load_config(work.config)
    name = f"{config.run}-{ranks}-{work.precision}{'-compiled' if work.compile else ''}"
    config = malmoi.load_config(work.config, run=name, train=train)
    trainer = build_pretraining(config, prepare_run(config)).trainer
    trainer.progress = TakesTurns(turns)
    trainer.run(StopRequest())


if __name__ == "__main__":
    main()
