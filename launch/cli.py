"""The `malmoi` command: finds the subcommand and imports only what it needs."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from configs.errors import (
    DISK_ERRORS,
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    BadInput,
    RunFailed,
    nearest_name_hint,
)

HELP_FLAGS = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """A subcommand, by name only, so that `malmoi --help` imports none of them."""

    summary: str
    module: str
    function: str = "main"


COMMANDS = {
    "tokenizer": Command("train a tokenizer on text", "launch.data_commands", "tokenizer"),
    "prepare": Command("turn text into memory-mapped token shards", "launch.data_commands", "prepare"),
    "verify": Command("whether a shard folder, checkpoint or model is whole", "launch.data_commands", "verify"),
    "inspect": Command("what a shard folder holds", "launch.data_commands", "inspect"),
    "train": Command("train a model, from whatever is there already", "launch.model_commands", "train"),
    "finetune": Command("train a model on labelled examples", "launch.finetune_command", "finetune"),
    "generate": Command("draw text from a model", "launch.model_commands", "generate"),
    "evaluate": Command("loss, perplexity and bits per byte of a model", "launch.model_commands", "evaluate"),
    "fewshot": Command("tasks with no, one or several examples in the prompt", "launch.fewshot_command", "fewshot"),
    "quality": Command("how varied samples are, and how much of them is copied", "launch.model_commands", "quality"),
    "judge": Command("whether people can tell a model's texts from people's", "launch.judge"),
    "report": Command("write RUN/report.html", "launch.report", "main"),
    "slurm": Command("job scripts: render, submit, status, sweep", "launch.slurm", "main"),
    "doctor": Command("what this machine can do, and what to install if it cannot", "launch.doctor", "main"),
}


def usage() -> str:
    """The text of `malmoi --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return (
        "usage: malmoi COMMAND [--config FILE_OR_PRESET] [--setting VALUE ...]\n\n"
        "Trains a Korean GPT-2 from raw text.\n\ncommands:\n" + "\n".join(lines) + "\n\n"
        "`malmoi COMMAND --help` lists the settings of one. `malmoi train --config demo` is a good start."
    )


def _show_log(name: str) -> None:
    """Show on stderr what our own rooms log; of several ranks, what the first does, and of the others only warnings."""
    import logging  # late: --help needs none

    logging.basicConfig(format=f"malmoi {name}: %(message)s", level=logging.WARNING)
    if os.environ.get("RANK", "0") == "0":
        for room in ("data_prep", "inference", "train", "launch"):
            logging.getLogger(room).setLevel(logging.INFO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; bad input is one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in HELP_FLAGS:
        print(usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else EXIT_BAD_INPUT
    name, rest = words[0], words[1:]
    try:
        if name not in COMMANDS:
            raise BadInput(f"no command '{name}'{nearest_name_hint(name, COMMANDS)} See `malmoi --help`")
        command = COMMANDS[name]
        _show_log(name)
        code = getattr(importlib.import_module(command.module), command.function)(rest)
        sys.stdout.flush()
    except BadInput as error:
        print(f"malmoi {name}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RunFailed as error:
        print(f"malmoi {name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): what is left must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"malmoi {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = error.filename or "the disk that is written to"
        print(
            f"malmoi {name}: {place}: {error.strerror}; make room or name another place, and run again", file=sys.stderr
        )
        return EXIT_FAILED
    return int(code)
