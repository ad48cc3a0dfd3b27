"""`malmoi generate`, `evaluate` and `quality`."""

from collections.abc import Sequence
from pathlib import Path

from malmoi.configs.commands import EvaluateOptions, GenerateOptions, QualityOptions
from malmoi.errors import EXIT_DONE, require_options
from malmoi.inference.model_files import check_model_files
from malmoi.launch.commands.options import errors_name_options, parse_with_plugins
from malmoi.lazy_imports import fast_imports


def generate(argv: Sequence[str]) -> int:
    """Sample text from a model folder."""
    options = parse_with_plugins(
        GenerateOptions, argv, "malmoi generate", "Sample text from a model folder.", lists=("stop",)
    )
    require_options("generate", model=bool(options.model))
    check_model_files(Path(options.model))
    from rich.console import Console

    with fast_imports():
        from malmoi.inference.generate import read_prompts, sample_prompts
        from malmoi.inference.model_folder import load_model
        from malmoi.inference.sample_output import PromptSamples, print_samples, samples_as_json

    prompts = [options.prompt] if options.prompts_file is None else read_prompts(Path(options.prompts_file))
    loaded = load_model(options.model)
    console = Console()
    results: list[PromptSamples] = []
    for result in sample_prompts(
        loaded,
        prompts,
        options,
        batch_size=options.batch_size,
        stop=options.stop,
        logprobs=options.logprobs,
        console=console if console.is_terminal and not options.json else None,
    ):
        if not options.json:
            console.print("\n" if results else "", end="")
            print_samples(console, result)
        results.append(result)
    if options.json:
        print(samples_as_json(results))
    return EXIT_DONE


def evaluate(argv: Sequence[str]) -> int:
    """Evaluate models on the validation split of shards or on text."""
    options = parse_with_plugins(
        EvaluateOptions,
        argv,
        "malmoi evaluate",
        "Compute loss, perplexity and bits per byte of models.",
        lists=("model",),
    )
    require_options("evaluate", model=bool(options.model), data=bool(options.data))
    for model in options.model:
        check_model_files(Path(model))
    with fast_imports():
        from malmoi.evaluation.evaluate import evaluate_models, print_results, results_as_json

    with errors_name_options(EvaluateOptions):
        results = list(evaluate_models(options))
    if options.json:
        print(results_as_json(results))
    else:
        print_results(options.data, results)
    return EXIT_DONE


def quality(argv: Sequence[str]) -> int:
    """Measure the diversity of samples, and how much of them is memorized training text."""
    options = parse_with_plugins(
        QualityOptions,
        argv,
        "malmoi quality",
        "Measure the diversity of samples, and how much of them is memorized training text.",
    )
    require_options("quality", model=bool(options.model))
    if options.texts is None:
        check_model_files(Path(options.model))
    with fast_imports():
        from malmoi.evaluation.diversity import measure_quality, print_quality, quality_as_json

    with errors_name_options(QualityOptions):
        measured = measure_quality(options)
    if options.json:
        print(quality_as_json(measured))
    else:
        print_quality(options, measured)
    return EXIT_DONE
