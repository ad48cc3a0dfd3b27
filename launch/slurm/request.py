"""A command line of `malmoi slurm`: the options of a job, and the settings of the run that it trains."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from malmoi.configs.commands import SlurmOptions
from malmoi.configs.finetune import TASK_LISTS, FinetuneSettings
from malmoi.configs.parser import config_path, parse_settings, preset_names, setting_names, without_switch
from malmoi.configs.renamed import unknown_setting
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError

LISTS = ("sbatch", "module", "mount", "setup", "grid")
CLUSTER, FINETUNE = "cluster", "finetune"


@dataclass(frozen=True)
class Request:
    """A job, and the run that it trains."""

    options: SlurmOptions
    settings: RunSettings | FinetuneSettings
    config: str
    """Value of `--config` for the run's command: a preset's name or an absolute path; empty for none."""
    overrides: tuple[str, ...]
    """Words of the run's command after `--config`, without `--run`."""

    @property
    def run(self) -> Path:
        """The run folder, absolute."""
        return Path(self.settings.run).absolute()

    @property
    def checkpoint_folder(self) -> Path | str | None:
        """The folder of `checkpoint.dir`, absolute, or its URL if it is a remote store; none: in the run folder."""
        place = self.settings.checkpoint.dir
        if place is None:
            return None
        path = place.removeprefix("file://")
        return path if "://" in path else Path(path).absolute()

    @property
    def pre_training(self) -> RunSettings:
        """The settings of a pre-training run.

        Raises:
            UserError: it is a fine-tuning run, which has no corpus to prepare and no sweep.
        """
        if isinstance(self.settings, FinetuneSettings):
            raise UserError("--finetune: fine-tuning has no corpus to prepare and no sweep; drop --data_job or --grid")
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

    `--cluster FILE` names a YAML file with options that all jobs on a cluster need. With `--finetune`, the settings are
    those of `malmoi finetune`.

    Raises:
        UserError: an option is unknown, or a value is not of its type.
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
                raise UserError(unknown_setting(name, ["config", *job_names, *run_names, CLUSTER, FINETUNE], flag="--"))
            else:
                target = job if name in job_names or name == "help" else run
        elif word == "-h":
            target = job
        target.append(word)
    options = parse_settings(SlurmOptions, job, prog, description, lists=LISTS)
    settings: RunSettings | FinetuneSettings
    if is_finetuning:
        settings = parse_settings(FinetuneSettings, run, prog, description, lists=TASK_LISTS)
    else:
        settings = parse_settings(RunSettings, run, prog, description)
    config, overrides = _split_config(run)
    return Request(options, settings, config, overrides)


def _split_config(words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the config that `words` name, valid in any working directory, and the other words without `--run`."""
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
