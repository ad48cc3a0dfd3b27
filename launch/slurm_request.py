"""What is asked of Slurm: a job's options, and the run that it trains, from one command line."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.command_line import config_path, parse_settings, preset_names, setting_names, without_switch
from configs.commands import SlurmOptions
from configs.errors import BadInput, nearest_name_hint
from configs.finetune_settings import FinetuneSettings
from configs.schema import RunSettings

LISTS = ("sbatch", "module", "mount", "setup", "grid")
CLUSTER, FINETUNE = "cluster", "finetune"


@dataclass(frozen=True)
class Request:
    """A job, and the run that it trains."""

    options: SlurmOptions
    settings: RunSettings | FinetuneSettings
    config: str
    """What `--config` of the run's command gets: a preset's name or an absolute path; empty for none."""
    overrides: tuple[str, ...]
    """The words of the run's command that stand after `--config`, but for `--run`."""

    @property
    def run(self) -> Path:
        """The run folder, absolute."""
        return Path(self.settings.run).absolute()

    @property
    def pre_training(self) -> RunSettings:
        """The settings of a pre-training.

        Raises:
            BadInput: it is a fine-tuning, which has no corpus to prepare and no grid of its own.
        """
        if isinstance(self.settings, FinetuneSettings):
            raise BadInput("--finetune: a fine-tuning has no corpus to prepare and no sweep; drop --data_job or --grid")
        return self.settings

    @property
    def ranks_per_node(self) -> int:
        """Processes a node."""
        return self.options.ranks_per_node or self.options.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.options.nodes * self.ranks_per_node


def parse_request(argv: Sequence[str], prog: str, description: str) -> Request:
    """Split a command line into the job's options and the run's settings.

    `--cluster FILE` names a YAML file of the job's options, for what a cluster always needs; `--finetune` stands for a
    run of `malmoi finetune`.

    Raises:
        BadInput: an option is unknown, or a value is not of its type.
    """
    is_finetuning, argv = without_switch(argv, FINETUNE)
    kind = FinetuneSettings if is_finetuning else RunSettings
    job_names, run_names = setting_names(SlurmOptions), setting_names(kind)
    job: list[str] = []
    run: list[str] = []
    target = run
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            is_known = name in run_names or name in ("config", "help") or name in job_names
            if name == CLUSTER:
                target, word = job, "--config" + equals + value
            elif not is_known:
                known = [f"--{entry}" for entry in (*job_names, *run_names, CLUSTER, FINETUNE)]
                raise BadInput(f"unknown option '--{name}'{nearest_name_hint(f'--{name}', known)}")
            else:
                target = job if name in job_names or name == "help" else run
        elif word == "-h":
            target = job
        target.append(word)
    options = parse_settings(SlurmOptions, job, prog, description, lists=LISTS)
    settings: RunSettings | FinetuneSettings
    if is_finetuning:
        settings = parse_settings(FinetuneSettings, run, prog, description, lists=("task.fields",))
    else:
        settings = parse_settings(RunSettings, run, prog, description)
    config, overrides = _split_config(run)
    return Request(options, settings, config, overrides)


def _split_config(words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The config that `words` name, fit for any folder, and the rest of them without `--run`."""
    config, rest = "", []
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name not in ("--config", "--run"):
            rest.append(name + equals + value)
            continue
        if not equals:
            value = left.pop(0)
        if name == "--config":
            is_preset = value in preset_names() and not Path(value).is_file()
            config = value if is_preset else os.path.abspath(config_path(value))  # noqa: PTH100 - symlinks stay as named
    return config, tuple(rest)
