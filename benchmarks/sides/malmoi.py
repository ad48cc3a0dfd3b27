"""Malmoi's own loop, `Training.update` and its log lines, set up by `malmoi train`'s code from the same YAML."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.command_line import parse_settings
from configs.schema import RunSettings
from sides.turns import Turns
from sides.work import read_work
from train.display import TrainingDisplay
from train.loop import Training
from train.run_folder import prepare_run
from train.session import ready


def main() -> None:
    work = read_work(sys.argv[1])
    turns = Turns(work.device)
    turns.ready()
    settings = parse_settings(RunSettings, ["--config", work.config], "benchmark", "")
    suffix = "compiled" if work.compile else "eager"
    settings = replace(
        settings,
        run=f"{settings.run}-{suffix}-{work.precision}",
        train=replace(settings.train, compile=work.compile, precision=work.precision),
    )
    made = ready(settings, prepare_run(settings))
    with TrainingDisplay(False) as display:
        training = Training(made.plan, made.backend, made.placement, display)
        display.start(0, made.plan.steps)
        while count := turns.wait():
            for _ in range(count):
                update = training.update()
                if training.progress.step % training.plan.train.log_every == 0:
                    training._log(update)
            turns.done(lambda update=update: float(update.nats) / update.targets)


if __name__ == "__main__":
    main()
