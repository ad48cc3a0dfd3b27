"""The subcommands of `malmoi`, by name only, so that `malmoi --help` imports none of them."""

import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from malmoi.errors import EXIT_DONE, EXIT_USER_ERROR, UserError, nearest_name_hint

HELP_FLAGS = ("-h", "--help")
Subcommand = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Command:
    """A subcommand, imported when it is called."""

    summary: str
    target: str
    """`module:function`, the module in this package."""
    outlives_reader: bool = False
    """Whether it continues when nobody reads its output any more: it is run for what it writes to disk."""

    def __call__(self, argv: Sequence[str]) -> int:
        """Run the subcommand on the words after its name and return its exit code."""
        return int(pkgutil.resolve_name(f"{__name__}.{self.target}")(argv))


COMMANDS: Mapping[str, Command] = {
    "tokenizer": Command("train a tokenizer on text", "data:tokenizer", outlives_reader=True),
    "prepare": Command("turn text into memory-mapped token shards", "data:prepare", outlives_reader=True),
    "verify": Command("check a run, shard folder, checkpoint or model for damage", "verify:verify"),
    "inspect": Command("show what a shard folder holds", "data:inspect"),
    "train": Command("train a model, or resume its run", "train:train", outlives_reader=True),
    "finetune": Command("fine-tune a model on labeled examples", "train:finetune", outlives_reader=True),
    "generate": Command("sample text from a model", "model:generate"),
    "evaluate": Command("loss, perplexity and bits per byte of models", "model:evaluate"),
    "fewshot": Command("evaluate tasks with zero, one or several examples in the prompt", "fewshot:fewshot"),
    "quality": Command("diversity of samples, and how much of them is memorized", "model:quality"),
    "judge": Command("human evaluation: can people tell a model's texts from people's?", "human_eval:main"),
    "report": Command("write RUN/report.html", "report:main"),
    "slurm": Command("Slurm jobs: render, submit, status, sweep", "slurm:main"),
    "doctor": Command("what this machine can train, and what to install if it cannot", "doctor:main"),
}


def run_subcommand(command: str, subcommands: Mapping[str, Subcommand], usage: str, argv: Sequence[str]) -> int:
    """Run the subcommand that the first word names.

    Without a word, print the usage on stderr; for `--help`, print it on stdout.

    Args:
        command: words between `malmoi` and the subcommand, for error messages; empty for none.

    Raises:
        UserError: there is no subcommand of that name.
    """
    if not argv or argv[0] in HELP_FLAGS:
        print(usage, file=sys.stdout if argv else sys.stderr)
        return EXIT_DONE if argv else EXIT_USER_ERROR
    name, rest = argv[0], argv[1:]
    if name not in subcommands:
        hint = nearest_name_hint(name, subcommands)
        named, asked = (" ".join(filter(None, words)) for words in ((command, name), ("malmoi", command, "--help")))
        raise UserError(f"no command '{named}'{hint} See `{asked}`")
    return subcommands[name](rest)
