"""The time of an optimizer step that is too long, or too large for this machine, to be tried: from a smaller model."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

from malmoi.configs.model import ModelSettings
from malmoi.configs.run import RunSettings
from malmoi.ranks import launched_ranks
from malmoi.registry import registry_entry
from malmoi.train.backends import BACKENDS
from malmoi.train.backends.start import resolved_backend
from malmoi.train.distributed.dist_env import resolved_precision
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.memory import state_size
from malmoi.train.metrics.throughput import peak_flops
from malmoi.train.models import ModelSpec
from malmoi.train.optim import OptimizerSpec
from malmoi.train.trainer import Trainer

STEPS = 3
UTILIZATION = 0.3
"""Fraction of the peak FLOP/s that is expected before anything is measured."""
STEPS_SECONDS = 20.0
"""Expected for `STEPS` steps of the full run beyond which a smaller model is timed."""
PASS_SECONDS = 1.0
"""Expected at most of one forward and backward pass of the smaller model."""
HOST_BYTES = 2 * 2**30
"""Weights, gradients, optimizer and activations of the smaller model at most, on a CPU."""
LEAST_LAYERS, LEAST_BLOCK = 2, 256
LEAST_TOKENS = 1024
"""Of a pass, before the model is made smaller too: products of few rows compute slower than those of the run."""


@dataclass(frozen=True)
class PassTimes:
    """Seconds of a forward and backward pass of one micro-batch, and of the optimizer step after it."""

    micro_batch: float
    optimizer: float


def timed_settings(settings: RunSettings, spec: ModelSpec, vocab_size: int) -> RunSettings:
    """Return the settings of what a dry run times: those of the run, or of a smaller model of the same family with
    weights at random, where `STEPS` steps of the run would take too long or do not fit into memory.

    Args:
        vocab_size: without padding.
    """
    launch = read_launch_env()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = resolved_backend(settings.parallel.backend, launch)
    flops_a_second = UTILIZATION * peak_flops(device, resolved_precision(settings.train.precision, device))
    free = _free_bytes(device)

    def pass_seconds(shape: ModelSettings, samples: int) -> float:
        return spec.flops_per_token(shape, vocab_size) * samples * shape.block_size / flops_a_second

    ranks_of_a_copy = launch.num_ranks // settings.parallel.replicas

    def needed_bytes(shape: ModelSettings, samples: int) -> int:
        state = state_size(spec, shape, vocab_size, settings.optim.name)
        activations = spec.activation_bytes(shape, vocab_size, settings.train, samples, False, device.type)
        return state.peak_bytes(backend, ranks_of_a_copy, False) + activations

    shape, samples = settings.model, _micro_batch_size(settings)
    step_seconds = pass_seconds(shape, settings.train.global_batch_size) / launch.num_ranks
    # A rank's host holds all weights in fp32 for a moment, or its shard of them.
    host_bytes = 4 * spec.num_params(shape, vocab_size)
    if registry_entry(BACKENDS, "parallel.backend", backend).defers_init:
        host_bytes //= ranks_of_a_copy
    if (
        STEPS * step_seconds <= STEPS_SECONDS
        and needed_bytes(shape, samples) <= free
        and host_bytes <= _free_bytes(torch.device("cpu"))
    ):
        return settings
    most = min(free, HOST_BYTES) if device.type == "cpu" else free
    while pass_seconds(shape, samples) > PASS_SECONDS or needed_bytes(shape, samples) > most:
        smaller = _smaller_shape(shape)
        # A launcher's file may name the micro-batch size.
        can_halve = samples > 1 and launch.num_ranks == 1 and shape.n_layer <= LEAST_LAYERS
        if can_halve and (samples * shape.block_size > LEAST_TOKENS or smaller == shape):
            samples //= 2
        elif smaller == shape:
            break
        else:
            shape = smaller
    train = replace(settings.train, micro_batch_size=samples, max_steps=STEPS)
    return replace(settings, model=shape, train=train, init_from=None)


def _micro_batch_size(settings: RunSettings) -> int:
    size = settings.train.micro_batch_size
    return size if isinstance(size, int) else 1


def _smaller_shape(shape: ModelSettings) -> ModelSettings:
    """Fewer layers first, which changes least how fast the device computes, then a shorter block, then less width in
    heads of the same size; the shape itself where nothing is left to take away."""
    if shape.n_layer > LEAST_LAYERS:
        return replace(shape, n_layer=max(LEAST_LAYERS, shape.n_layer // 2))
    if shape.block_size > LEAST_BLOCK:
        return replace(shape, block_size=max(LEAST_BLOCK, shape.block_size // 2))
    if shape.n_head > 1:
        heads = shape.n_head // 2
        # As many keys and values for a query's head as before, as far as that can be.
        kv_heads = None if shape.n_kv_head is None else math.gcd(heads, shape.n_kv_head)
        n_inner = None if shape.n_inner is None else max(1, shape.n_inner * heads // shape.n_head)
        width = shape.n_embd // shape.n_head * heads
        return replace(shape, n_head=heads, n_embd=width, n_kv_head=kv_heads, n_inner=n_inner)
    return shape


def _free_bytes(device: torch.device) -> int:
    """Return what a rank may take of the device's memory, with room for what the estimates leave out."""
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info()[0])
    return int(0.8 * psutil.virtual_memory().available) // max(1, launched_ranks().local_count)


def pass_times(trainer: Trainer, report: Callable[[str], None]) -> PassTimes:
    """Return the seconds of a pass and of an optimizer step, mean of `STEPS` less the first, which also warms up; every
    rank must call this, and nothing is written.

    Args:
        report: called with which is running.
    """
    plan, backend, device = trainer.plan, trainer.backend, trainer.env.device
    batch = plan.task.largest(plan.micro_batch_size)
    passes, steps = [], []
    for number in range(STEPS):
        report(f"pass {number + 1} of {STEPS} of a smaller model")
        began = time.perf_counter()
        with backend.micro_batch(True):
            with backend.autocast():
                loss_sum = plan.task.loss_sum(backend.model, batch, device)
            backend.backward(loss_sum, plan.micro_batch_size * plan.task.sample_tokens)
        _wait_for(device)
        computed = time.perf_counter()
        backend.step(plan.optim.lr).grad_norm.value()
        _wait_for(device)
        passes.append(computed - began)
        steps.append(time.perf_counter() - computed)
    return PassTimes(sum(passes[1:]) / (STEPS - 1), sum(steps[1:]) / (STEPS - 1))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(
    times: PassTimes,
    full: RunSettings,
    timed: RunSettings,
    spec: ModelSpec,
    optimizer: OptimizerSpec,
    vocab_size: int,
    ranks: int,
) -> float:
    """Return the seconds of an optimizer step of `full` from those that `timed` took: passes by their floating-point
    operations, the optimizer by its parameters, and where it multiplies full matrices by their width too."""

    def pass_flops(settings: RunSettings) -> float:
        shape = settings.model
        return spec.flops_per_token(shape, vocab_size) * shape.block_size

    samples = full.train.global_batch_size / ranks
    a_sample = times.micro_batch / _micro_batch_size(timed) * pass_flops(full) / pass_flops(timed)
    growth = spec.num_params(full.model, vocab_size) / spec.num_params(timed.model, vocab_size)
    if optimizer.needs_full_matrices:
        growth *= full.model.n_embd / timed.model.n_embd
    return samples * a_sample + growth * times.optimizer


def difference(full: RunSettings, timed: RunSettings) -> str:
    """Return how what was timed differs from the run, in words."""
    one, all_of_it = timed.model, full.model
    samples = _micro_batch_size(timed)
    return (
        f"{one.n_layer} of {all_of_it.n_layer} layers, width {one.n_embd:,} of {all_of_it.n_embd:,}, "
        f"{one.block_size:,} of {all_of_it.block_size:,} positions and {samples} of "
        f"{full.train.global_batch_size:,} samples"
    )
