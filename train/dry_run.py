"""What a run would take: memory, steps, tokens, disk, and time by three real steps that leave nothing behind, or where
these are too long by a smaller model's."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.outputs import CheckpointSettings
from malmoi.configs.run import RunSettings
from malmoi.data_prep.shards.manifest import read_manifest
from malmoi.disk_space import readable_bytes
from malmoi.errors import EXIT_DONE
from malmoi.inference.model_folder import quiet_transformers
from malmoi.ranks import counted_ranks, is_main_rank
from malmoi.registry import registry_entry
from malmoi.train.backends import BACKENDS
from malmoi.train.builder import Trainee
from malmoi.train.checkpoint.format import newest_valid_checkpoint
from malmoi.train.checkpoint.resume import check_resumable
from malmoi.train.checkpoint.storage import open_storage
from malmoi.train.data.dataset import open_dataset
from malmoi.train.data.sample_order import planned_steps
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.parallel_dims import ParallelDims
from malmoi.train.finetune import build_finetuning, check_finetuning
from malmoi.train.memory import StateSize, state_size
from malmoi.train.metrics.throughput import peak_memory_mib
from malmoi.train.models import MODELS
from malmoi.train.models.spec import padded_vocabulary
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.pretrain import check_run
from malmoi.train.pretrain_run import Pretraining, build_pretraining
from malmoi.train.run_dir import (
    FINETUNING_FIXED,
    PreparedRun,
    checkpoint_url,
    make_run_dir,
    prepare_run,
    setting_changes,
)
from malmoi.train.step_time import STEPS, PassTimes, difference, pass_times, step_seconds, timed_settings
from malmoi.train.train_plan import TrainPlan
from malmoi.train.trainer import Trainer

RANKS = (1, 2, 4, 8)
"""Numbers of devices that the table shows, besides the one at hand."""


def dry_run(settings: RunSettings) -> int:
    """Prepare the run, print what it would take, and return the exit code; the run folder gets what preparing writes.

    A model whose steps would take minutes here, or that is too large for this machine, is never built: a smaller one of
    its family is timed, and the rest is computed.

    Raises:
        UserError: settings, text, launcher or run folder are not usable.
    """
    quiet_transformers()
    # Before text is prepared, which may take hours.
    check_run(settings)
    prepared = prepare_run(settings)
    spec = registry_entry(MODELS, "model.architecture", settings.model.architecture)
    timed = timed_settings(settings, spec, read_manifest(prepared.sources[0].folder).vocab_size)
    if timed is settings:
        run = build_pretraining(settings, prepared)
        plan = run.trainer.plan
    else:
        with tempfile.TemporaryDirectory() as empty:
            run = build_pretraining(replace(timed, run=empty), replace(prepared, folder=Path(empty)))
        plan = full_plan(settings, prepared, run)
    trainee, env = run.trainee, run.env
    storage = open_storage(checkpoint_url(plan.run, plan.checkpoint))
    newest, _ = newest_valid_checkpoint(storage)
    if newest is not None:
        check_resumable(newest, storage.place(newest.name), plan.resume_conditions())
    batch, block, ranks = plan.train.global_batch_size, settings.model.block_size, env.dims.dp_size
    tokens = plan.max_steps * batch * block
    train_tokens = run.train_tokens
    console = Console(quiet=not is_main_rank(), highlight=False, soft_wrap=True)
    console.print(f"parameters    {plan.parameters:,}")
    console.print(
        f"steps         {plan.max_steps:,} of {batch} x {block} tokens ({plan.micro_batch_size} samples x "
        f"{counted_ranks(ranks)} x {plan.accumulation} accumulated)"
    )
    console.print(
        f"tokens        {tokens:,}, {tokens / plan.parameters:.1f} a parameter, "
        f"{tokens / train_tokens:.2f} epochs of {train_tokens:,}"
    )
    full = replace(trainee, shape=settings.model)
    activations = _activation_bytes(full, plan, env)
    _print_size(console, full, plan, env, activations)
    with _status(console) as report:
        if timed is settings:
            time_shown = time_line(seconds_of_steps(run.trainer, report), plan.max_steps)
        else:
            times = pass_times(run.trainer, report)
            optimizer = registry_entry(OPTIMIZERS, "optim.name", settings.optim.name)
            seconds = step_seconds(times, settings, timed, spec, optimizer, trainee.vocab_size, ranks)
            time_shown = computed_time_line(times, seconds, plan.max_steps, difference(settings, timed))
    console.print(time_shown)
    if timed is settings:
        _print_memory_seen(console, env)
    run.trainer.backend.close()
    env.leave()
    return EXIT_DONE


def full_plan(settings: RunSettings, prepared: PreparedRun, timed: Pretraining) -> TrainPlan:
    """Return the plan of the run of `settings`, whose model is not built, from that of a smaller one.

    Raises:
        UserError: batch, ranks and launcher do not fit, or the text is shorter than a block.
    """
    trainee, env, train, model = timed.trainee, timed.env, settings.train, settings.model
    dataset = open_dataset(prepared.sources, model.block_size, train.seed)
    micro_batch_size = train.micro_batch_size if isinstance(train.micro_batch_size, int) else 1
    return replace(
        timed.trainer.plan,
        run=Path(settings.run),
        train=train,
        max_steps=planned_steps(train, dataset.samples_per_epoch),
        micro_batch_size=micro_batch_size,
        accumulation=env.dims.accumulation_steps(train.global_batch_size, micro_batch_size),
        parameters=trainee.spec.num_params(model, trainee.vocab_size),
        changes=setting_changes(prepared.folder, settings),
    )


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
    activations = trainee.spec.activation_bytes(
        trainee.shape, trainee.vocab_size, plan.train, sequences, env.is_half, env.device.type
    )
    if settings.task.lm_loss_weight:
        # Unlike pre-training it holds all logits: in their own precision, in fp32, and as a gradient.
        logits = sequences * trainee.shape.block_size * padded_vocabulary(trainee.vocab_size)
        activations += (2 * (1 if env.is_half else 2) + 8) * logits
    _print_size(console, trainee, plan, env, activations)
    with _status(console) as report:
        seconds = seconds_of_steps(trainer, report)
    console.print(time_line(seconds, plan.max_steps))
    _print_memory_seen(console, env)
    trainer.backend.close()
    env.leave()
    with contextlib.suppress(OSError):
        folder.rmdir()  # where it was made for this alone, it is empty
    return EXIT_DONE


def _activation_bytes(trainee: Trainee, plan: TrainPlan, env: DistEnv) -> int:
    return trainee.spec.activation_bytes(
        trainee.shape, trainee.vocab_size, plan.train, plan.micro_batch_size, env.is_half, env.device.type
    )


def _print_size(console: Console, trainee: Trainee, plan: TrainPlan, env: DistEnv, activations: int) -> None:
    """Print memory and disk, which are computed."""
    size = state_size(trainee.spec, trainee.shape, trainee.vocab_size, plan.optim.name)
    console.print(memory_table(size, activations, env.dims, env.is_half))
    console.print(disk_line(size, 4 * plan.parameters, plan.checkpoint, plan.run))


@contextlib.contextmanager
def _status(console: Console) -> Iterator[Callable[[str], None]]:
    """Give a function that shows on a terminal what is running."""
    with Console(stderr=True, quiet=console.quiet, highlight=False).status("") as status:
        yield status.update


def _print_memory_seen(console: Console, env: DistEnv) -> None:
    measured = peak_memory_mib(env.device) * 2**20
    console.print(
        f"memory seen   {readable_bytes(measured)} on rank 0 in these steps, everything that is loaded included"
    )


def memory_table(size: StateSize, activations: int, dims: ParallelDims, half: bool) -> Table:
    """Return the estimated memory of a device for each backend, in GiB, by the number of devices.

    Args:
        activations: bytes of them on a device.
        dims: of the run at hand.
        half: whether it computes in 16 bits.
    """
    columns = sorted({*RANKS, dims.dp_size})
    copies = {name: dims.replicas if spec.can_replicate else 1 for name, spec in BACKENDS.items()}
    table = Table(title=f"GiB a device, {activations / 2**30:.2f} of them activations", title_justify="left")
    table.add_column("devices")
    for count in columns:
        table.add_column(str(count), justify="right")
    for backend in BACKENDS:
        shown = [
            _gib(size.peak_bytes(backend, count // copies[backend], half) + activations)
            if (backend != "single" or count == 1) and count % copies[backend] == 0
            else ""
            for count in columns
        ]
        table.add_row(backend if copies[backend] == 1 else f"{backend}, {copies[backend]} replicas", *shown)
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


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


def computed_time_line(times: PassTimes, a_step: float, steps: int, timed: str) -> str:
    """Return the run's time, computed from a smaller model's.

    Args:
        a_step: seconds of an optimizer step of the run.
        timed: what was measured, in words.
    """
    total = timedelta(seconds=round(a_step * steps))
    return (
        f"time          about {total} of steps, {a_step:,.1f} s each, without evaluations and checkpoints (computed, "
        f"by floating-point operations, from {timed}; measured: {times.micro_batch:.2f} s a pass, "
        f"{times.optimizer:.2f} s an optimizer step)"
    )
