from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import GPT2Config, GPT2LMHeadModel

from configs.schema import RunSettings, TrainSettings
from inference.score import Nats, Windows, nats_of_windows
from train.blocks import HeldOutPart, open_held_out
from train.held_out import held_out_score
from train.launcher import launched_ranks
from train.memory import loss_positions
from train.parallel import Placement
from train.replicated import Replicated
from train.run_folder import prepare_run


@pytest.fixture
def placement() -> Iterator[Placement]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Placement(Accelerator(cpu=True), "single", "fp32", launched_ranks({}), ())
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def held_out(tiny_settings: RunSettings, finished_run: object) -> HeldOutPart:
    prepared = prepare_run(tiny_settings)
    part = open_held_out(prepared.sources)
    assert part is not None
    return part


def backend_of(placement: Placement) -> Replicated:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=16, vocab_size=2048, n_positions=32))
    return Replicated(placement, model, TrainSettings())


def test_the_score_is_that_of_all_windows_at_once(placement: Placement, held_out: HeldOutPart) -> None:
    backend = backend_of(placement)
    asked = []

    def go_on() -> bool:
        asked.append(True)
        return True

    score = held_out_score(backend, placement.accelerator, held_out, 32, 2000, 4, None, go_on)
    assert score is not None
    assert len(asked) > 2
    windows = Windows(len(held_out.stream), 32, 32)
    backend.model.eval()
    with torch.no_grad():
        whole: Nats = nats_of_windows(
            lambda ids: backend.model(input_ids=ids).logits,
            held_out.stream,
            windows,
            range(len(windows)),
            len(windows),
            2000,
            torch.device("cpu"),
        )
    assert score.tokens == whole.tokens == len(held_out.stream) - 1
    assert score.loss == pytest.approx(whole.nats / whole.tokens, rel=1e-6)


def test_a_look_holds_no_more_logits_than_a_chunk_of_trainings_loss(
    placement: Placement, held_out: HeldOutPart
) -> None:
    """However large the micro-batch: the loss of training never holds all logits of one."""
    backend, positions = backend_of(placement), []
    backend.model.register_forward_pre_hook(
        lambda _, __, inputs: positions.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    for batch in (4, 512):
        positions.clear()
        score = held_out_score(backend, placement.accelerator, held_out, 32, 2000, batch, None, lambda: True)
        assert score is not None and score.tokens == len(held_out.stream) - 1
        assert max(positions) == 32 * min(batch, loss_positions(2000, "cpu") // 2 // 32)


def test_windows_that_a_rank_lacks_count_for_nothing(placement: Placement, held_out: HeldOutPart) -> None:
    backend = backend_of(placement)
    windows = Windows(len(held_out.stream), 32, 32)

    def nats(numbers: list[int | None]) -> Nats:
        with torch.no_grad():
            return nats_of_windows(
                lambda ids: backend.model(input_ids=ids).logits,
                held_out.stream,
                windows,
                numbers,
                4,
                2000,
                torch.device("cpu"),
            )

    backend.model.eval()
    with_blanks, without = nats([3, None, 5, None, None]), nats([3, 5])
    assert with_blanks.tokens == without.tokens
    assert with_blanks.nats == pytest.approx(without.nats, rel=1e-6)


def test_a_stop_breaks_it_off_and_leaves_the_model_training(placement: Placement, held_out: HeldOutPart) -> None:
    backend = backend_of(placement)
    backend.model.train()
    answers = iter([True, False])
    score = held_out_score(backend, placement.accelerator, held_out, 32, 2000, 1, None, lambda: next(answers))
    assert score is None
    assert backend.model.training
