"""What a run would take: memory, steps, tokens, disk, and time by three real steps that leave nothing behind."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.outputs import CheckpointSettings
from malmoi.configs.run import RunSettings
from malmoi.disk_space import readable_bytes
from malmoi.errors import EXIT_DONE
from malmoi.inference.model_folder import quiet_transformers
from malmoi.ranks import counted_ranks, is_main_rank
from malmoi.train.backends import BACKENDS
from malmoi.train.builder import Trainee
from malmoi.train.checkpoint.format import newest_valid_checkpoint
from malmoi.train.checkpoint.resume import check_resumable
from malmoi.train.finetune import build_finetuning, check_finetuning
from malmoi.train.memory import StateSize, state_size
from malmoi.train.metrics.throughput import peak_memory_mib
from malmoi.train.models.spec import padded_vocabulary
from malmoi.train.pretrain import check_run
from malmoi.train.pretrain_run import build_pretraining
from malmoi.train.run_dir import FINETUNING_FIXED, make_run_dir, prepare_run
from malmoi.train.trainer import Trainer

STEPS = 3
RANKS = (1, 2, 4, 8)
"""Numbers of devices that the table shows, besides the one at hand."""


def dry_run(settings: RunSettings) -> int:
    """Prepare the run, print what it would take, and return the exit code; the run folder gets what preparing writes.

    Raises:
        UserError: settings, text, launcher or run folder are not usable.
    """
    quiet_transformers()
    # Before text is prepared, which may take hours.
    check_run(settings)
    run = build_pretraining(settings, prepare_run(settings))
    trainer, trainee = run.trainer, run.trainee
    plan, env = trainer.plan, trainer.env
    newest, _ = newest_valid_checkpoint(trainer.storage)
    if newest is not None:
        check_resumable(newest, trainer.storage.place(newest.name), plan.resume_conditions())
    batch, block, ranks = plan.train.global_batch_size, settings.model.block_size, env.dims.dp_size
    parameters = plan.parameters
    tokens = plan.max_steps * batch * block
    console = Console(quiet=not is_main_rank(), highlight=False, soft_wrap=True)
    console.print(f"parameters    {parameters:,}")
    console.print(
        f"steps         {plan.max_steps:,} of {batch} x {block} tokens ({plan.micro_batch_size} samples x "
        f"{counted_ranks(ranks)} x {plan.accumulation} accumulated)"
    )
    console.print(
        f"tokens        {tokens:,}, {tokens / parameters:.1f} a parameter, "
        f"{tokens / (run.samples_per_epoch * block):.2f} epochs of {run.train_tokens:,}"
    )
    _print_cost(console, trainer, trainee, _activation_bytes(trainer, trainee, plan.micro_batch_size))
    return EXIT_DONE


def finetune_dry_run(settings: FinetuneSettings) -> int:
    """Read model and examples, print what fine-tuning would take, and return the exit code.

    Raises:
        UserError: settings, model, examples, launcher or run folder are not usable.
    """
    check_finetuning(settings)
    quiet_transformers()
    folder = make_run_dir(settings, FINETUNING_FIXED)
    console = Console(quiet=not is_main_rank(), highlight=False, soft_wrap=True)
    run = build_finetuning(settings, folder, console)
    trainer, trainee, train_examples = run.trainer, run.trainee, run.files.train
    plan, env = trainer.plan, trainer.env
    examples = plan.max_steps * plan.train.global_batch_size
    console.print(f"parameters    {plan.parameters:,}, and those of the head")
    console.print(
        f"steps         {plan.max_steps:,} of {plan.train.global_batch_size} examples ({plan.micro_batch_size} "
        f"examples x {counted_ranks(env.dims.dp_size)} x {plan.accumulation} accumulated)"
    )
    console.print(
        f"examples      {examples:,}, {examples / len(train_examples):.2f} epochs of {len(train_examples):,}; about "
        f"{examples * run.task.sample_tokens:,} tokens"
    )
    sequences = plan.micro_batch_size * train_examples.sequences
    activations = _activation_bytes(trainer, trainee, sequences)
    if settings.task.lm_loss_weight:
        # Unlike pre-training it holds all logits: in their own precision, in fp32, and as a gradient.
        logits = sequences * trainee.shape.block_size * padded_vocabulary(trainee.vocab_size)
        activations += (2 * (1 if env.is_half else 2) + 8) * logits
    _print_cost(console, trainer, trainee, activations)
    with contextlib.suppress(OSError):
        folder.rmdir()  # where it was made for this alone, it is empty
    return EXIT_DONE


def _activation_bytes(trainer: Trainer, trainee: Trainee, micro_batch_size: int) -> int:
    env = trainer.env
    return trainee.spec.activation_bytes(
        trainee.shape, trainee.vocab_size, trainer.plan.train, micro_batch_size, env.is_half, env.device.type
    )


def _print_cost(console: Console, trainer: Trainer, trainee: Trainee, activations: int) -> None:
    """Print memory, disk and time, and free what the run has set up."""
    plan, env = trainer.plan, trainer.env
    size = state_size(trainee.spec, trainee.shape, trainee.vocab_size, plan.optim.name)
    exported = 4 * plan.parameters
    console.print(memory_table(size, activations, env.dims.dp_size, env.is_half))
    console.print(disk_line(size, exported, plan.checkpoint, plan.run))
    with Console(stderr=True, quiet=console.quiet, highlight=False).status("") as status:
        seconds = seconds_of_steps(trainer, status.update)
    console.print(time_line(seconds, plan.max_steps))
    measured = peak_memory_mib(env.device) * 2**20
    console.print(
        f"memory seen   {readable_bytes(measured)} on rank 0 in these steps, everything that is loaded included"
    )
    trainer.backend.close()
    env.leave()


def memory_table(size: StateSize, activations: int, ranks: int, half: bool) -> Table:
    """Return the estimated memory of a device for each backend, in GiB, by the number of devices.

    Args:
        activations: bytes of them on a device.
        ranks: of the run at hand.
        half: whether it computes in 16 bits.
    """
    columns = sorted({*RANKS, ranks})
    table = Table(title=f"GiB a device, {activations / 2**30:.2f} of them activations", title_justify="left")
    table.add_column("devices")
    for count in columns:
        table.add_column(str(count), justify="right")
    for backend in BACKENDS:
        shown = [
            f"{(size.bytes_a_device(backend, count, half) + activations) / 2**30:.2f}"
            if backend != "single" or count == 1
            else ""
            for count in columns
        ]
        table.add_row(backend, *shown)
    return table


def disk_line(size: StateSize, model_bytes: int, settings: CheckpointSettings, folder: Path) -> str:
    """Return what checkpoints and model need on disk, and what is free; an old checkpoint is deleted after the new one
    is complete."""
    one, count = size.checkpoint_bytes, settings.keep_last + settings.keep_best + 1
    needed = one * count + model_bytes
    free = shutil.disk_usage(folder).free
    short = "" if needed <= free else "; NOT ENOUGH: make room, or lower checkpoint.keep_last"
    return (
        f"disk          {readable_bytes(needed)} for {count} checkpoints of {readable_bytes(one)} and the model; "
        f"{readable_bytes(free)} are free{short}"
    )


def seconds_of_steps(trainer: Trainer, report: Callable[[str], None]) -> list[float]:
    """Return the seconds of each of the first three steps, whose run folder is a temporary one.

    Args:
        report: called with which step is running. One of a large model takes minutes on a CPU.
    """
    seconds: list[float] = []
    count = min(STEPS, trainer.plan.max_steps)
    with tempfile.TemporaryDirectory() as empty:
        plan = replace(trainer.plan, run=Path(empty), checkpoint=replace(trainer.plan.checkpoint, dir=None))
        timed = Trainer(plan, trainer.backend, trainer.env)
        with timed.watchdog:
            for number in range(count):
                before = f"; the one before took {seconds[-1]:.0f} s" if seconds else ""
                report(f"step {number + 1} of {count}, of {plan.train.global_batch_size} samples{before}")
                began = time.perf_counter()
                timed.train_step()
                if timed.env.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - began)
    return seconds


def time_line(seconds: list[float], steps: int) -> str:
    """Return the run's time, from its first steps: the first also warms up, so the later ones count for the rest."""
    later = seconds[1:] or seconds
    a_step = sum(later) / len(later)
    total = timedelta(seconds=round(seconds[0] + a_step * (steps - 1)))
    shown = ", ".join(f"{value:.2f}" for value in seconds)
    return f"time          about {total} of steps, without evaluations and checkpoints (measured: {shown} s)"
