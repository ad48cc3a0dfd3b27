"""`malmoi train`, `generate`, `evaluate` and `quality`."""

from collections.abc import Sequence
from pathlib import Path

from configs.command_line import parse_settings, without_switch
from configs.commands import EvaluateOptions, GenerateOptions, QualityOptions
from configs.errors import EXIT_DONE, require_options
from configs.quick_imports import quick_imports
from configs.schema import RunSettings
from launch.option_names import bare_names


def train(argv: Sequence[str]) -> int:
    """Build what is missing, then train, or go on training; with `--dry_run`, only tell what training would take."""
    is_dry, argv = without_switch(argv, "dry_run")
    about = (
        "Train a model from text, or go on training it. With --dry_run: prepare the data, take three steps that leave "
        "nothing behind, and tell what the run would take in memory, disk and time."
    )
    settings = parse_settings(RunSettings, argv, "malmoi train", about)
    if is_dry:
        with quick_imports():
            from train.dry_run import dry_run

        return dry_run(settings)
    from train.run import run

    return run(settings)


def generate(argv: Sequence[str]) -> int:
    """Draw text from a model folder."""
    options = parse_settings(
        GenerateOptions, argv, "malmoi generate", "Draw text from a model folder.", lists=("stop",)
    )
    require_options("generate", model=bool(options.model))
    from rich.console import Console

    with quick_imports():
        from inference.generate import Batching, read_prompts
        from inference.generate import generate as draw
        from inference.model_folder import load_model
        from inference.sample_output import print_samples, samples_as_json

    prompts = [options.prompt] if options.prompts_file is None else read_prompts(Path(options.prompts_file))
    loaded = load_model(Path(options.model))
    console = Console()
    live = console if console.is_terminal and not options.json else None
    results = []
    for result in draw(loaded, prompts, options, live, Batching(options.batch, options.stop, options.logprobs)):
        results.append(result)
        if not options.json:
            print_samples(console, result)
    if options.json:
        print(samples_as_json(results))
    return EXIT_DONE


def evaluate(argv: Sequence[str]) -> int:
    """Score models on held-out shards or on text."""
    options = parse_settings(
        EvaluateOptions, argv, "malmoi evaluate", "Loss, perplexity and bits per byte of models.", lists=("model",)
    )
    require_options("evaluate", model=bool(options.model), data=bool(options.data))
    with quick_imports():
        from inference.evaluate import evaluate_models, print_scores, scores_as_json

    with bare_names(EvaluateOptions):
        scores = list(evaluate_models(options))
    if options.json:
        print(scores_as_json(scores))
    else:
        print_scores(options.data, scores)
    return EXIT_DONE


def quality(argv: Sequence[str]) -> int:
    """Measure how varied samples are, and how much of them stands in the training text."""
    options = parse_settings(
        QualityOptions, argv, "malmoi quality", "How varied samples are, and what they share with the training text."
    )
    require_options("quality", model=bool(options.model))
    with quick_imports():
        from inference.quality import measure_quality, print_quality, quality_as_json

    with bare_names(QualityOptions):
        measured = measure_quality(options)
    if options.json:
        print(quality_as_json(measured))
    else:
        print_quality(options, measured)
    return EXIT_DONE
