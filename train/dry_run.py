"""What a run would take: memory, steps, tokens, disk, and time by three real steps that leave nothing behind."""

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

from configs.errors import EXIT_DONE
from configs.schema import ModelSettings, RunSettings, TrainSettings
from data_prep.space import readable_bytes
from inference.model_folder import quiet_transformers
from train.backend import Backend
from train.checkpoint import newest_whole_checkpoint
from train.display import TrainingDisplay
from train.launcher import check_fits_launch, launched_ranks
from train.loop import Training
from train.memory import SHARDINGS, activation_bytes, checkpoint_bytes, model_bytes, state_bytes
from train.parallel import Placement
from train.plan import Plan
from train.ranges import check_ranges
from train.resuming import check_goes_on
from train.run_folder import CHECKPOINTS_FOLDER, is_main_rank, prepare_run
from train.session import Ready, ready
from train.size import parameter_count
from train.throughput import peak_memory_mib

STEPS = 3
RANKS = (1, 2, 4, 8)
"""Numbers of devices that the table shows, besides the one at hand."""


def dry_run(settings: RunSettings) -> int:
    """Prepare the run, print what it would take, and return the exit code; the run folder gets what preparing writes.

    Raises:
        BadInput: settings, text, launch or run folder are not usable.
    """
    quiet_transformers()
    # Before text is prepared, which may take hours.
    check_ranges(settings.train)
    check_fits_launch(settings.train, settings.parallel.backend, launched_ranks())
    prepared = prepare_run(settings)
    made = ready(settings, prepared)
    newest, _ = newest_whole_checkpoint(prepared.folder / CHECKPOINTS_FOLDER)
    if newest is not None:
        check_goes_on(newest, made.plan)
    console = Console(quiet=not is_main_rank(), highlight=False, soft_wrap=True)
    ranks = made.placement.ranks
    half = made.placement.precision != "fp32"
    for line in plan_lines(settings, made, ranks):
        console.print(line)
    vocab_size, train = made.task.vocab_size, settings.train
    activations = activation_bytes(
        settings.model, vocab_size, train, made.plan.micro_batch, half, made.placement.accelerator.device.type
    )
    console.print(memory_table(settings.model, vocab_size, train, activations, ranks, half))
    console.print(disk_line(settings.model, vocab_size, train, prepared.folder))
    print_steps(console, made.plan, made.backend, made.placement)
    return EXIT_DONE


def plan_lines(settings: RunSettings, made: Ready, ranks: int) -> list[str]:
    """Size, steps and tokens."""
    plan, train, block = made.plan, settings.train, settings.model.block_size
    samples = made.task.samples
    parameters = parameter_count(settings.model, made.task.vocab_size)
    tokens = plan.steps * train.global_batch * block
    return [
        f"parameters    {parameters:,}",
        f"steps         {plan.steps:,} of {train.global_batch} x {block} tokens ({plan.micro_batch} samples x {ranks} "
        f"ranks x {plan.accumulation} accumulated)",
        f"tokens        {tokens:,}, {tokens / parameters:.1f} a parameter, "
        f"{tokens / (samples.samples_per_epoch * block):.2f} epochs of {samples.tokens:,}",
    ]


def memory_table(
    model: ModelSettings, vocab_size: int, train: TrainSettings, activations: int, ranks: int, half: bool
) -> Table:
    """Estimated memory a device for each way of sharding, in GiB, by the number of devices.

    Args:
        activations: bytes of them on a device.
    """
    columns = sorted({*RANKS, ranks})
    table = Table(title=f"GiB a device, {activations / 2**30:.2f} of them activations", title_justify="left")
    table.add_column("devices")
    for count in columns:
        table.add_column(str(count), justify="right")
    for sharding in SHARDINGS:
        cells = [
            state_bytes(model, vocab_size, train.optimizer, sharding, count, half) + activations for count in columns
        ]
        shown = [f"{cell / 2**30:.2f}" for cell in cells]
        table.add_row(sharding, *(shown[:1] + [""] * len(shown[1:]) if sharding == "single" else shown))
    return table


def disk_line(model: ModelSettings, vocab_size: int, train: TrainSettings, folder: Path) -> str:
    """What checkpoints and model need on disk, and what is free; the old checkpoint goes after the new is whole."""
    one = checkpoint_bytes(model, vocab_size, train.optimizer)
    count = train.keep_last + train.keep_best + 1
    needed = one * count + model_bytes(model, vocab_size)
    free = shutil.disk_usage(folder).free
    short = "" if needed <= free else "; NOT ENOUGH: make room, or lower train.keep_last"
    return (
        f"disk          {readable_bytes(needed)} for {count} checkpoints of {readable_bytes(one)} and the model; "
        f"{readable_bytes(free)} are free{short}"
    )


def print_steps(console: Console, plan: Plan, backend: Backend, placement: Placement) -> None:
    """Take the steps, say what they took, and free what they needed."""
    with Console(stderr=True, quiet=console.quiet, highlight=False).status("") as status:
        seconds = seconds_of_steps(plan, backend, placement, status.update)
    console.print(time_line(seconds, plan.steps))
    measured = peak_memory_mib(placement.accelerator.device) * 2**20
    console.print(
        f"memory seen   {readable_bytes(measured)} on rank 0 in these steps, everything that is loaded included"
    )
    backend.close()
    placement.leave()


def seconds_of_steps(plan: Plan, backend: Backend, placement: Placement, tell: Callable[[str], None]) -> list[float]:
    """Seconds of each of the first three steps, taken in memory: the plan's folder is one that is thrown away.

    Args:
        tell: told which step is under way. One of a large model takes minutes on a CPU.
    """
    seconds: list[float] = []
    count = min(STEPS, plan.steps)
    with tempfile.TemporaryDirectory() as empty, TrainingDisplay(False) as display:
        training = Training(replace(plan, run=Path(empty)), backend, placement, display)
        with training.watchdog:
            for number in range(count):
                before = f"; the one before took {seconds[-1]:.0f} s" if seconds else ""
                tell(f"taking step {number + 1} of {count}, of {plan.train.global_batch} samples{before}")
                began = time.perf_counter()
                training.update()
                if placement.accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - began)
    return seconds


def time_line(seconds: list[float], steps: int) -> str:
    """The run's time, from its first steps: the first also warms up, so the later ones count for the rest."""
    later = seconds[1:] or seconds
    a_step = sum(later) / len(later)
    total = timedelta(seconds=round(seconds[0] + a_step * (steps - 1)))
    shown = ", ".join(f"{value:.2f}" for value in seconds)
    return f"time          about {total} of steps, without looks at held-out text and checkpoints ({shown} s seen)"
