"""However many micro-batches a step has, its gradient is as right as that of one: it is summed in fp32."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, distributed

from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import BackendName, ParallelSettings, TrainSettings
from malmoi.train.backends import BACKENDS, BackendInputs
from malmoi.train.backends.start import start_ranks
from malmoi.train.models import MODELS
from malmoi.train.models.gpt2 import TrainingGPT2
from tests.train.ranks import on_two_ranks
from tests.train.training_models import configured, new_gpt2

RANKS, TOKENS, VOCABULARY = 2, 32, 256
SHAPE = ModelSettings(n_layer=1, n_head=4, n_embd=256, block_size=TOKENS)
FEW, MANY = 1, 64
"""Micro-batches that each of two ranks accumulates."""
GROWTH = 1.3
SHARING: tuple[BackendName, ...] = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


def samples(accumulation: int) -> Tensor:
    """Token ids of all micro-batches, one sample each: int64[RANKS * accumulation, TOKENS + 1]."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, VOCABULARY, (RANKS * accumulation, TOKENS + 1), generator=generator)


def loss_sum(model: torch.nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")


def new_model() -> TrainingGPT2:
    return configured(new_gpt2(SHAPE, VOCABULARY, 1), TrainSettings())


def exact_gradients(accumulation: int) -> dict[str, Tensor]:
    """fp32, of the same mean loss as one batch."""
    model, ids = new_model(), samples(accumulation)
    (loss_sum(model, ids) / ids[:, 1:].numel()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def accumulated_gradients(name: BackendName, rank: int, accumulation: int) -> dict[str, Tensor]:
    """What AdamW is given: its first moment where beta 1 is 0."""
    optim = OptimSettings(betas=(0.0, 0.95), max_grad_norm=0.0)
    env = start_ranks(TrainSettings(precision="bf16"), optim, ParallelSettings(backend=name))
    backend = BACKENDS[name].build(BackendInputs(env, new_model(), MODELS["gpt2"], optim, 1, accumulation))
    ids = samples(accumulation)
    for number in range(accumulation):
        sample = ids[number * RANKS + rank][None]
        with backend.micro_batch(number == accumulation - 1):
            with backend.autocast():
                loss = loss_sum(backend.model, sample)
            backend.backward(loss, ids[:, 1:].numel())
    backend.step(1e-3)
    moments = {
        key.removeprefix("exp_avg."): tensor.float().clone()
        for key, tensor in backend.state_tensors()
        if key.startswith("exp_avg.")
    }
    backend.close()
    return moments


def relative_error(gradients: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    assert gradients.keys() == exact.keys()
    wrong = sum(float((gradients[name] - exact[name]).square().sum()) for name in exact)
    return float((wrong / sum(float(each.square().sum()) for each in exact.values())) ** 0.5)


def errors_by_backend(rank: int, folder: Path) -> None:
    before = dict(os.environ)
    # DeepSpeed does not let go of the process group.
    destroy, distributed.destroy_process_group = distributed.destroy_process_group, lambda *groups: None
    errors = {}
    for accumulation in (FEW, MANY):
        exact = exact_gradients(accumulation)
        for name in SHARING:
            gradients = accumulated_gradients(name, rank, accumulation)
            errors[f"{name}-{accumulation}"] = relative_error(gradients, exact)
            gc.collect()
            AcceleratorState._reset_state(reset_partial_state=True)
            os.environ.clear()
            os.environ.update(before)
    distributed.destroy_process_group = destroy
    if rank == 0:
        (folder / "errors.json").write_text(json.dumps(errors), encoding="utf-8")


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Relative errors of the gradient in bf16, by `BACKEND-MICRO_BATCHES`."""
    folder = tmp_path_factory.mktemp("accumulation")
    on_two_ranks(errors_by_backend, folder)
    found: dict[str, float] = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("backend", SHARING)
def test_the_error_of_a_gradient_in_bf16_does_not_grow_with_the_micro_batches(
    errors: dict[str, float], backend: BackendName
) -> None:
    few, many = errors[f"{backend}-{FEW}"], errors[f"{backend}-{MANY}"]
    assert 0 < few < 0.02, "bf16 is not what was computed in"
    assert many <= GROWTH * few, (few, many)
