"""A plugin that has a run sleep after each step, so that hours of faults cost little of the machine."""

import time

from malmoi.train.trainer import Trainer

SECONDS = 0.2


def setup_trainer(trainer: Trainer) -> None:
    """Sleep after every step."""
    trainer.add_hook(lambda _: time.sleep(SECONDS))
