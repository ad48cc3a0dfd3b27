"""`train.micro_batch_size auto` tries the model that trains, and on a CPU nothing that would end the process."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import malmoi.train.builder
from malmoi.configs.model import ModelSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.errors import UserError
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.pretrain import pretrain
from malmoi.train.tasks.base import EvalResult, Task
from malmoi.train.tasks.micro_batch import free_bytes, kept_bytes, largest_computed_micro_batch, largest_micro_batch
from tests.launching import with_settings
from tests.train.training_models import configured, new_gpt2

SHAPE = ModelSettings(n_layer=3, n_head=4, n_embd=32, block_size=128)
TRAIN = TrainSettings(compile=False)


@pytest.fixture
def env() -> DistEnv:
    launch = read_launch_env({})
    return DistEnv(Accelerator(cpu=True), "single", "fp32", launch, launch.dims)


@dataclass
class OnesTask:
    """A task whose samples are rows of ones; it notes the sizes that are tried."""

    most: int = 10**15
    """Samples that fit into memory."""
    tried: list[int] = field(default_factory=list)
    sample_tokens: int = 8

    def num_target_tokens(self, first_sample: int, count: int) -> int:
        return count

    def read(self, first_sample: int, count: int) -> int:
        raise AssertionError("a size is tried with the largest samples")

    def largest(self, count: int) -> int:
        return count

    def loss_sum(self, model: nn.Module, samples: int, device: torch.device) -> Tensor:
        self.tried.append(samples)
        if samples > self.most:
            raise torch.OutOfMemoryError
        rows: Tensor = model(torch.ones(samples, 8, device=device))
        return rows.relu().sum()

    def evaluate(self, *_: Any) -> EvalResult | None:
        return None


def bytes_of_a_sample(train: TrainSettings) -> int:
    model = configured(new_gpt2(SHAPE, 500, 1), train)
    ids = torch.zeros((1, SHAPE.block_size), dtype=torch.int64)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return kept_bytes(lambda: model(ids, ids), own)


def test_what_a_sample_keeps_depends_on_what_the_model_computes_with() -> None:
    plain = bytes_of_a_sample(TRAIN)
    eager = bytes_of_a_sample(replace(TRAIN, attention="eager"))
    less = bytes_of_a_sample(replace(TRAIN, activation_checkpointing=True))
    attention_weights = 4 * SHAPE.n_layer * SHAPE.n_head * SHAPE.block_size**2
    assert eager - plain > 0.9 * attention_weights
    assert less < plain / 3


def test_a_cpu_is_not_asked_for_more_than_is_free(env: DistEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = nn.Linear(8, 8), OnesTask()
    # As many ranks on this machine that each has about a megabyte, which some 10,000 samples of 64 to 128 bytes take.
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(psutil.virtual_memory().available // 10**6))
    found = largest_micro_batch(model, task, 2**20, env)
    assert 2**11 <= found <= 2**14
    # One sample is measured; a size that does not go into what is free is never tried.
    assert task.tried == [1, found]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_the_largest_divisor_that_fits(env: DistEnv) -> None:
    model, task = nn.Linear(8, 8), OnesTask(most=7)
    assert largest_micro_batch(model, task, 24, env) == 6
    assert task.tried == [1, 24, 12, 8, 6]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_beside_which_no_sample_fits_is_refused_with_the_remedy(env: DistEnv) -> None:
    class NoneFits(OnesTask):
        def loss_sum(self, model: nn.Module, samples: int, device: torch.device) -> Tensor:
            if self.tried:
                raise torch.OutOfMemoryError
            return super().loss_sum(model, samples, device)

    with pytest.raises(UserError, match=r"not even one sample fits .*zero3 or fsdp2"):
        largest_micro_batch(nn.Linear(8, 8), NoneFits(), 4, env)


def test_where_no_rank_holds_the_model_the_largest_size_is_computed(env: DistEnv) -> None:
    free = free_bytes(env.device)
    assert largest_computed_micro_batch(lambda size: size * (free // 10), 24, env) == 8
    with pytest.raises(UserError, match=r"one sample takes .* a rank, and .* are usable; take more ranks"):
        largest_computed_micro_batch(lambda size: size * free, 24, env)


def test_the_model_that_is_tried_computes_as_the_one_that_trains(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, bool]] = []

    def noted(find: Callable[..., int]) -> Callable[..., int]:
        def find_and_note(model: TrainingGPT2, task: Task, *rest: Any) -> int:
            is_masked = task.largest(1).doc_starts is not None
            seen.append((model.config._attn_implementation, model.transformer.h[0].gradient_checkpointing, is_masked))
            return find(model, task, *rest)

        return find_and_note

    monkeypatch.setattr(malmoi.train.builder, "largest_micro_batch", noted(largest_micro_batch))
    settings = with_settings(
        tiny_settings,
        run=str(tmp_path / "run"),
        train__micro_batch_size="auto",
        train__max_steps=1,
        train__attention="eager",
        train__activation_checkpointing=True,
        data__document_mask=True,
    )
    assert pretrain(settings) == 0
    assert seen == [("eager", True, True)]
