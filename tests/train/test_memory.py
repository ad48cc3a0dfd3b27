"""The estimates of `--dry_run`: what the ZeRO paper says of sharding, and what really is allocated."""

import gc
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import BackendName, ParallelSettings, TrainSettings
from malmoi.train.backends import BACKENDS, BackendInputs, zero
from malmoi.train.backends.start import start_ranks
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.memory import state_size
from malmoi.train.models import MODELS
from malmoi.train.models.spec import padded_vocabulary
from malmoi.train.optim import OPTIMIZERS
from tests.train.ranks import on_two_ranks
from tests.train.training_models import new_gpt2

GPT2 = MODELS["gpt2"]
MODEL, VOCABULARY = ModelSettings(), 50_257
ZERO: tuple[BackendName, ...] = ("zero1", "zero2", "zero3")
PARAMETERS = GPT2.num_params(MODEL, padded_vocabulary(VOCABULARY))
SIZE = state_size(GPT2, MODEL, VOCABULARY, "adamw")
SMALL = ModelSettings(n_layer=2, n_head=2, n_embd=64, block_size=32)
"""Every first dimension of its parameters, and its padded vocabulary, can be halved."""


@pytest.mark.parametrize(
    ("backend", "half", "bytes_a_parameter"),
    [
        ("single", True, 16),
        ("single", False, 16),
        ("ddp", True, 16),
        ("fsdp2", True, 16),
        # Weights of 2 bytes, fp32 copies of them, gradients, two moments; stage 1 has the reduced gradients apart.
        ("zero1", True, 2 + 4 + 8 + 8),
        ("zero2", True, 2 + 4 + 4 + 8),
        ("zero3", True, 2 + 4 + 4 + 8),
        ("zero1", False, 4 + 4 + 4 + 8),
        ("zero2", False, 4 + 4 + 4 + 8),
        ("zero3", False, 4 + 4 + 4 + 8),
    ],
)
def test_one_device_holds_all_of_it(backend: BackendName, half: bool, bytes_a_parameter: int) -> None:
    assert SIZE.bytes_a_device(backend, 1, half) == bytes_a_parameter * PARAMETERS


@pytest.mark.parametrize(
    ("backend", "share"),
    [("ddp", 16), ("zero1", 6 + 16 / 64), ("zero2", 2 + 16 / 64), ("zero3", 18 / 64), ("fsdp2", 16 / 64)],
)
def test_sixty_four_devices_hold_what_the_zero_paper_shows_with_gradients_in_fp32(
    backend: BackendName, share: float
) -> None:
    assert SIZE.bytes_a_device(backend, 64, half=True) == pytest.approx(share * PARAMETERS, abs=1)


def test_muon_keeps_one_moment_for_the_matrices_of_the_blocks() -> None:
    matrices = 12 * MODEL.n_layer * MODEL.n_embd**2
    assert state_size(GPT2, MODEL, VOCABULARY, "muon").optimizer_bytes == 8 * PARAMETERS - 4 * matrices


def test_while_it_computes_a_device_holds_blocks_of_fsdp2_and_autocasts_copies_besides() -> None:
    """Of fsdp2: all outside the blocks, two blocks and a gradient in 16 bits, and the gradient in fp32."""
    block, others = 12 * 768**2 + 13 * 768, (50_304 + 1024 + 2) * 768
    assert others + 12 * block == PARAMETERS
    assert SIZE.gathered_bytes("ddp", half=True) == 2 * PARAMETERS + 2 * block
    assert SIZE.gathered_bytes("ddp", half=False) == 2 * block
    assert SIZE.gathered_bytes("fsdp2", half=True) == 2 * others + 10 * block
    assert SIZE.gathered_bytes("fsdp2", half=False) == 4 * others + 16 * block
    assert SIZE.peak_bytes("fsdp2", 8, half=True) == 2 * PARAMETERS + 2 * others + 10 * block


def test_a_checkpoint_holds_weights_and_moments_in_fp32() -> None:
    assert SIZE.checkpoint_bytes == 12 * PARAMETERS
    assert SIZE.parameters == PARAMETERS


def allocated_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages on this rank, each once."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in local}.values())


def bytes_of_a_step(env: DistEnv, optimizer: str) -> int:
    """Train one step, and return the bytes of weights, gradients and the optimizer's tensors, counters apart."""
    optim = OptimSettings(name=optimizer)
    model = new_gpt2(SMALL, 500, 1)
    backend = BACKENDS[env.backend].build(BackendInputs(env, model, GPT2, optim, 1, 1))
    ids = torch.randint(0, 500, (1, SMALL.block_size))
    with backend.micro_batch(is_last=True):
        loss_sum = backend.model(ids, ids, 500)
        backend.backward(loss_sum, ids.numel())
    weights = list(backend.model.parameters())
    gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
    assert len(gradients) == len(weights)
    held = allocated_bytes([*weights, *gradients])
    backend.step(1e-3)
    del gradients
    optimizer_state = backend._optimizer.state.values()  # type: ignore[attr-defined]
    state = [state[key] for state in optimizer_state for key in OPTIMIZERS[optimizer].state_keys if key in state]
    return held + allocated_bytes(state)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_one_process_allocates_what_is_estimated(optimizer: str) -> None:
    launch = read_launch_env({})
    env = DistEnv(Accelerator(cpu=True), "single", "fp32", launch, launch.dims)
    expected = state_size(GPT2, SMALL, 500, optimizer).bytes_a_device("single", 1, half=False)
    assert bytes_of_a_step(env, optimizer) == expected


LARGER = ModelSettings(n_layer=2, n_head=2, n_embd=128, block_size=32)
MICRO_BATCHES = 2


def live_bytes() -> int:
    """Return the bytes of the storages of all tensors that Python knows of, each once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return allocated_bytes(each for each in gc.get_objects() if isinstance(each, Tensor))


def most_bytes_under_zero(env: DistEnv) -> int:
    """Train two steps, and return the most bytes held between micro-batches and before the second step."""
    optim = OptimSettings()
    before = live_bytes()
    model = new_gpt2(LARGER, 500, 1)
    backend = BACKENDS[env.backend].build(BackendInputs(env, model, GPT2, optim, 1, MICRO_BATCHES))
    ids = torch.randint(0, 500, (1, LARGER.block_size))
    most = 0
    for _ in range(2):
        for number in range(MICRO_BATCHES):
            with backend.micro_batch(is_last=number == MICRO_BATCHES - 1):
                backend.backward(backend.model(ids, ids, 500), MICRO_BATCHES * ids.numel())
            most = max(most, live_bytes() - before)
        backend.step(1e-3)
    backend.close()
    return most


def zero_on_a_rank(rank: int, folder: Path) -> None:
    before = dict(os.environ)
    # Nothing beside what grows with the model.
    zero.REDUCE_BUCKET = 1000
    # DeepSpeed does not let go of the process group.
    destroy, distributed.destroy_process_group = distributed.destroy_process_group, lambda *groups: None
    for precision, name in product(("bf16", "fp32"), ZERO):
        train = TrainSettings(precision=precision)  # type: ignore[arg-type]
        env = start_ranks(train, OptimSettings(), ParallelSettings(backend=name))
        (folder / f"{name}-{precision}-{rank}").write_text(str(most_bytes_under_zero(env)), encoding="utf-8")
        gc.collect()
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)
    distributed.destroy_process_group = destroy


def test_zero_holds_on_a_rank_of_two_what_is_estimated(tmp_path: Path) -> None:
    on_two_ranks(zero_on_a_rank, tmp_path)
    size = state_size(GPT2, LARGER, 500, "adamw")
    for precision, name, rank in product(("bf16", "fp32"), ZERO, range(2)):
        seen = int((tmp_path / f"{name}-{precision}-{rank}").read_text(encoding="utf-8"))
        half = precision == "bf16"
        # Stage 3 also keeps parameters of fewer than 100,000 elements whole, here all.
        persistent = (2 if half else 4) * size.parameters * (name == "zero3")
        share = seen / (size.bytes_a_device(name, 2, half) + persistent)
        # Stage 1 has whole gradients and its reduced shard at once within the last backward pass only.
        assert 0.85 < share < 1.05, (name, precision, share)


def step_on_a_rank(rank: int, folder: Path) -> None:
    for optimizer in OPTIMIZERS:
        for backend in ("ddp", "fsdp2"):
            parallel = replace(ParallelSettings(), backend=backend)
            env = start_ranks(TrainSettings(precision="fp32"), OptimSettings(name=optimizer), parallel)
            held = bytes_of_a_step(env, optimizer)
            (folder / f"{backend}-{optimizer}-{rank}").write_text(str(held), encoding="utf-8")


def test_a_rank_of_two_allocates_what_is_estimated(tmp_path: Path) -> None:
    on_two_ranks(step_on_a_rank, tmp_path)
    for optimizer in OPTIMIZERS:
        size = state_size(GPT2, SMALL, 500, optimizer)
        for backend in ("ddp", "fsdp2"):
            seen = [int((tmp_path / f"{backend}-{optimizer}-{rank}").read_text(encoding="utf-8")) for rank in range(2)]
            assert seen == [size.bytes_a_device(backend, 2, half=False)] * 2, (backend, optimizer)
