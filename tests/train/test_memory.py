import pytest

from configs.schema import ModelSettings, TrainSettings
from train.memory import SHARDINGS, activation_bytes, checkpoint_bytes, moment_bytes, state_bytes
from train.size import padded_vocabulary, parameter_count

MODEL, VOCABULARY = ModelSettings(), 50_257
PARAMETERS = parameter_count(MODEL, padded_vocabulary(VOCABULARY))


def test_one_device_holds_sixteen_bytes_a_parameter_however_it_is_sharded() -> None:
    for sharding in SHARDINGS:
        for half in (True, False):
            assert state_bytes(MODEL, VOCABULARY, "adamw", sharding, 1, half) == 16 * PARAMETERS


@pytest.mark.parametrize(
    ("sharding", "share"),
    [("ddp", 16), ("zero1", 4 + 12 / 64), ("zero2", 2 + 14 / 64), ("zero3", 16 / 64), ("fsdp2", 16 / 64)],
)
def test_sixty_four_devices_hold_what_the_zero_papers_first_figure_shows(sharding: str, share: float) -> None:
    seen = state_bytes(MODEL, VOCABULARY, "adamw", sharding, 64, half=True)
    assert seen == pytest.approx(share * PARAMETERS, abs=1)


def test_in_32_bits_zero_keeps_no_second_copy_of_the_weights() -> None:
    assert state_bytes(MODEL, VOCABULARY, "adamw", "zero1", 8, half=False) == 9 * PARAMETERS
    assert state_bytes(MODEL, VOCABULARY, "adamw", "zero2", 8, half=False) == pytest.approx(5.5 * PARAMETERS, abs=1)


def test_muon_keeps_one_moment_for_the_matrices_of_the_blocks() -> None:
    matrices = 12 * MODEL.n_layer * MODEL.n_embd**2
    assert moment_bytes(MODEL, VOCABULARY, "muon") == 8 * PARAMETERS - 4 * matrices
    assert checkpoint_bytes(MODEL, VOCABULARY, "adamw") == 12 * PARAMETERS


def test_activations_shrink_with_checkpointing_and_grow_with_plain_attention() -> None:
    plain = activation_bytes(MODEL, VOCABULARY, TrainSettings(), 8, half=True, device_type="cuda")
    less = activation_bytes(
        MODEL, VOCABULARY, TrainSettings(activation_checkpointing=True), 8, half=True, device_type="cuda"
    )
    eager = activation_bytes(MODEL, VOCABULARY, TrainSettings(attention="eager"), 8, half=True, device_type="cuda")
    tokens = 8 * 1024
    chunk = 2**28 // VOCABULARY // 64 * 64 * VOCABULARY
    loss = 2 * chunk + 4 * 768 * padded_vocabulary(VOCABULARY) + 2 * tokens * 768
    assert plain == 34 * tokens * 768 * 12 + loss
    assert plain - less == 34 * tokens * 768 * 11 - 2 * tokens * 768 * 12
    assert eager - plain == 5 * 12 * 1024 * tokens * 12
