"""The validation loss is that of all windows at once, however they are batched, and can be stopped."""

import pytest
import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from malmoi.configs.optim import OptimSettings
from malmoi.configs.run import RunSettings
from malmoi.evaluation.perplexity import LossSum, Windows, sum_window_losses
from malmoi.train.backends import BackendInputs
from malmoi.train.backends.ddp import ReplicatedBackend
from malmoi.train.data.dataset import ValidationSplit, open_validation
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.distributed.launch_env import read_launch_env
from malmoi.train.models import MODELS
from malmoi.train.models.cross_entropy import chunk_positions
from malmoi.train.run_dir import prepare_run
from malmoi.train.tasks.validation import validation_perplexity

BLOCK, VOCABULARY = 32, 2000
CPU = torch.device("cpu")


@pytest.fixture
def env() -> DistEnv:
    launch = read_launch_env({})
    return DistEnv(Accelerator(cpu=True), "single", "fp32", launch, launch.dims)


@pytest.fixture
def validation(tiny_settings: RunSettings, finished_run: object) -> ValidationSplit:
    split = open_validation(prepare_run(tiny_settings).sources)
    assert split is not None
    return split


@pytest.fixture
def backend(env: DistEnv) -> ReplicatedBackend:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=16, vocab_size=2048, n_positions=BLOCK))
    return ReplicatedBackend(BackendInputs(env, model, MODELS["gpt2"], OptimSettings(), 1, 1))


@torch.no_grad()
def loss_sum(backend: ReplicatedBackend, split: ValidationSplit, indices: list[int | None], batch_size: int) -> LossSum:
    backend.model.eval()
    windows = Windows(len(split.stream), BLOCK, BLOCK)
    return sum_window_losses(
        lambda ids: backend.model(input_ids=ids).logits, split.stream, windows, indices, batch_size, VOCABULARY, CPU
    )


def test_the_loss_is_that_of_all_windows_at_once(
    backend: ReplicatedBackend, env: DistEnv, validation: ValidationSplit
) -> None:
    asked = []

    def keep_going() -> bool:
        asked.append(True)
        return True

    result = validation_perplexity(backend, env, validation, BLOCK, VOCABULARY, 4, None, keep_going)
    assert result is not None
    assert len(asked) > 2
    count = len(Windows(len(validation.stream), BLOCK, BLOCK))
    together = loss_sum(backend, validation, list(range(count)), count)
    assert result.tokens == together.num_tokens == len(validation.stream) - 1
    assert result.loss == pytest.approx(together.loss_sum / together.num_tokens, rel=1e-6)


def test_an_evaluation_of_some_tokens_reads_the_first_windows(
    backend: ReplicatedBackend, env: DistEnv, validation: ValidationSplit
) -> None:
    result = validation_perplexity(backend, env, validation, BLOCK, VOCABULARY, 4, 5 * BLOCK + 7, lambda: True)
    assert result is not None
    first = loss_sum(backend, validation, list(range(5)), 5)
    assert result.tokens == first.num_tokens == 5 * BLOCK
    assert result.loss == pytest.approx(first.loss_sum / first.num_tokens, rel=1e-6)


def test_an_evaluation_holds_no_more_logits_than_a_chunk_of_trainings_loss(
    backend: ReplicatedBackend, env: DistEnv, validation: ValidationSplit
) -> None:
    """However large the micro-batch: the loss of training never holds all logits of one."""
    positions: list[int] = []
    backend.model.register_forward_pre_hook(
        lambda _, __, inputs: positions.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    for batch_size in (4, 512):
        positions.clear()
        result = validation_perplexity(backend, env, validation, BLOCK, VOCABULARY, batch_size, None, lambda: True)
        assert result is not None and result.tokens == len(validation.stream) - 1
        assert max(positions) == BLOCK * min(batch_size, chunk_positions(VOCABULARY, "cpu") // 2 // BLOCK)


def test_windows_that_a_rank_lacks_count_for_nothing(backend: ReplicatedBackend, validation: ValidationSplit) -> None:
    with_blanks, without = (loss_sum(backend, validation, each, 4) for each in ([3, None, 5, None, None], [3, 5]))
    assert with_blanks.num_tokens == without.num_tokens
    assert with_blanks.loss_sum == pytest.approx(without.loss_sum, rel=1e-6)


def test_a_stop_breaks_it_off_and_leaves_the_model_training(
    backend: ReplicatedBackend, env: DistEnv, validation: ValidationSplit
) -> None:
    backend.model.train()
    answers = iter([True, False])
    result = validation_perplexity(backend, env, validation, BLOCK, VOCABULARY, 1, None, lambda: next(answers))
    assert result is None
    assert backend.model.training
