"""`malmoi tokenizer`, `prepare` and `inspect`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from malmoi.configs.commands import InspectOptions, PrepareOptions, TokenizerOptions
from malmoi.configs.parser import parse_settings
from malmoi.configs.run import RunSettings
from malmoi.errors import EXIT_DONE, UserError, require_argument, require_options
from malmoi.launch.commands.options import errors_name_options, parse_with_plugins


def tokenizer(argv: Sequence[str]) -> int:
    """Train a tokenizer into a new folder."""
    options = parse_with_plugins(
        TokenizerOptions, argv, "malmoi tokenizer", "Train a tokenizer on text.", lists=("input",)
    )
    require_options("tokenizer", input=bool(options.input or options.sources), out=bool(options.out))
    from malmoi.data_prep.pipeline.build import build_tokenizer
    from malmoi.data_prep.tokenizer.train import TOKENIZER_FILE

    out = Path(options.out)
    if (out / TOKENIZER_FILE).exists():
        raise UserError(f"{out}: holds a tokenizer already; delete it, or choose another --out")
    with errors_name_options(TokenizerOptions):
        print(build_tokenizer(options, options, out, show_progress=sys.stderr.isatty()))
    return EXIT_DONE


def prepare(argv: Sequence[str]) -> int:
    """Turn text into shards, by a run's settings or by options alone; print the shard folder of each source."""
    if any(word == "--config" or word.startswith("--config=") for word in argv):
        from malmoi.train.run_dir import prepare_run

        run = parse_with_plugins(RunSettings, argv, "malmoi prepare", "Build a run's tokenizer and shards.")
        sources = prepare_run(run).sources
    else:
        about = "Turn text into token shards."
        options = parse_with_plugins(PrepareOptions, argv, "malmoi prepare", about, lists=("input",))
        has_text = bool(options.input or options.sources)
        require_options("prepare", input=has_text, tokenizer=bool(options.tokenizer), out=bool(options.out))
        from malmoi.data_prep.pipeline.mixture import prepare_sources

        with errors_name_options(PrepareOptions):
            sources = prepare_sources(options, options, Path(options.tokenizer), Path(options.out), options.plugins)
    for source in sources:
        print(source.folder)
    return EXIT_DONE


def inspect(argv: Sequence[str]) -> int:
    """Show what a shard folder holds, or one document of it."""
    about = "Show what a shard folder holds, or one of its documents."
    options = parse_settings(InspectOptions, argv, "malmoi inspect", about, positional="path")
    require_argument("inspect", "PATH", bool(options.path))
    from rich.console import Console

    from malmoi.data_prep.shards.inspect import decoded_document, decoder_of, inspect_shards, print_inspection

    inspection = inspect_shards(Path(options.path))
    decoder = decoder_of(inspection, options.tokenizer)
    if options.document is not None:
        print(decoded_document(inspection, options.document, decoder, options.split))
    else:
        print_inspection(inspection, decoder, Console())
    return EXIT_DONE
