"""`malmoi tokenizer`, `prepare`, `verify` and `inspect`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.command_line import parse_settings
from configs.commands import InspectOptions, PrepareOptions, TokenizerOptions, VerifyOptions
from configs.errors import EXIT_DONE, BadInput, require_argument, require_options
from configs.schema import RunSettings
from launch.option_names import bare_names


def tokenizer(argv: Sequence[str]) -> int:
    """Train a tokenizer into a folder that is not there yet."""
    options = parse_settings(TokenizerOptions, argv, "malmoi tokenizer", "Train a tokenizer on text.", lists=("input",))
    require_options("tokenizer", input=bool(options.input or options.sources), out=bool(options.out))
    from data_prep.build import build_tokenizer
    from data_prep.tokenizer import TOKENIZER_FILE

    out = Path(options.out)
    if (out / TOKENIZER_FILE).exists():
        raise BadInput(f"{out}: holds a tokenizer already; delete it, or choose another --out")
    with bare_names(TokenizerOptions):
        print(build_tokenizer(options, options, out, show_progress=sys.stderr.isatty()))
    return EXIT_DONE


def prepare(argv: Sequence[str]) -> int:
    """Turn text into shards, by a run's settings or by options alone; prints the shard folder of each source."""
    if any(word == "--config" or word.startswith("--config=") for word in argv):
        from train.run_folder import prepare_run

        run = parse_settings(RunSettings, argv, "malmoi prepare", "Build a run's tokenizer and shards.")
        sources = prepare_run(run).sources
    else:
        options = parse_settings(
            PrepareOptions, argv, "malmoi prepare", "Turn text into token shards.", lists=("input",)
        )
        has_text = bool(options.input or options.sources)
        require_options("prepare", input=has_text, tokenizer=bool(options.tokenizer), out=bool(options.out))
        from data_prep.mixture import prepare_sources

        with bare_names(PrepareOptions):
            sources = prepare_sources(options, options, Path(options.tokenizer), Path(options.out))
    for source in sources:
        print(source.folder)
    return EXIT_DONE


def verify(argv: Sequence[str]) -> int:
    """Say whether a folder is whole; every fault is a line on stderr."""
    options = parse_settings(VerifyOptions, argv, "malmoi verify", "Whether a folder is whole.", positional="path")
    require_argument("verify", "PATH", bool(options.path))
    from launch.verify import folder_faults

    checked, faults = folder_faults(Path(options.path), Path(options.tokenizer) if options.tokenizer else None)
    if not faults:
        print(f"{options.path}: {checked}, whole")
        return EXIT_DONE
    for fault in faults[:-1]:
        print(f"malmoi verify: {fault}", file=sys.stderr)
    raise BadInput(faults[-1])


def inspect(argv: Sequence[str]) -> int:
    """Show what a shard folder holds, or one document of it."""
    options = parse_settings(InspectOptions, argv, "malmoi inspect", "What shards hold.", positional="path")
    require_argument("inspect", "PATH", bool(options.path))
    from rich.console import Console

    from data_prep.inspection import decoded_document, decoder_of, inspect_shards, print_inspection

    inspection = inspect_shards(Path(options.path))
    decoder = decoder_of(inspection, options.tokenizer)
    if options.document is not None:
        print(decoded_document(inspection, options.document, decoder, options.held_out))
    else:
        print_inspection(inspection, decoder, Console())
    return EXIT_DONE
