"""What a fine-tuning would take: memory, steps, disk, and time by three real steps that leave nothing behind."""

import contextlib
from pathlib import Path

from rich.console import Console

from configs.errors import EXIT_DONE, require_options
from configs.finetune_settings import FinetuneSettings
from inference.model_folder import quiet_transformers
from train.dry_run import disk_line, memory_table, print_steps
from train.example_tokens import example_tokenizer
from train.finetune import FIXED, check_settings, model_shape, read_task, ready_to_finetune
from train.memory import activation_bytes
from train.run_folder import is_main_rank, make_run_folder
from train.size import padded_vocabulary, parameter_count


def finetune_dry_run(settings: FinetuneSettings) -> int:
    """Read model and examples, print what the fine-tuning would take, and return the exit code.

    Raises:
        BadInput: settings, model, examples, launch or run folder are not usable.
    """
    require_options("finetune", **{"init_from": bool(settings.init_from), "task.train": bool(settings.task.train)})
    check_settings(settings)
    quiet_transformers()
    folder = make_run_folder(settings, FIXED)
    console = Console(quiet=not is_main_rank(), highlight=False, soft_wrap=True)
    shape = model_shape(settings)
    tokenizer = example_tokenizer(Path(settings.init_from), shape.block_size)
    read = read_task(settings, tokenizer, console)
    made = ready_to_finetune(settings, folder, shape, tokenizer, read)
    plan, ranks, train = made.plan, made.placement.ranks, made.plan.train
    examples = plan.steps * train.global_batch
    console.print(f"parameters    {parameter_count(shape, tokenizer.size):,}, and those of the head")
    console.print(
        f"steps         {plan.steps:,} of {train.global_batch} examples ({plan.micro_batch} examples x {ranks} ranks x "
        f"{plan.accumulation} accumulated)"
    )
    console.print(
        f"examples      {examples:,}, {examples / len(read.train):.2f} epochs of {len(read.train):,}; about "
        f"{examples * made.task.sample_tokens:,} tokens"
    )
    sequences = plan.micro_batch * read.train.sequences
    half = made.placement.precision != "fp32"
    activations = activation_bytes(
        shape, tokenizer.size, train, sequences, half, made.placement.accelerator.device.type
    )
    if settings.task.language_model_weight:
        # Unlike pre-training it holds all logits: in their own precision, in fp32, and as a gradient.
        logits = sequences * shape.block_size * padded_vocabulary(tokenizer.size)
        activations += (2 * (1 if half else 2) + 8) * logits
    console.print(memory_table(shape, tokenizer.size, train, activations, ranks, half))
    console.print(disk_line(shape, tokenizer.size, train, folder))
    print_steps(console, plan, made.backend, made.placement)
    with contextlib.suppress(OSError):
        folder.rmdir()  # where it was made for this alone, it is empty
    return EXIT_DONE
