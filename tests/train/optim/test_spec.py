"""What each optimizer's registry entry says of its state is what the optimizer really keeps."""

from typing import get_args

import pytest
import torch

from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimizerName, OptimSettings
from malmoi.train.models import MODELS
from malmoi.train.optim import OPTIMIZERS
from tests.train.training_models import new_gpt2

GPT2 = MODELS["gpt2"]
SHAPE = ModelSettings(n_layer=3, n_head=2, n_embd=32, block_size=16)
VOCABULARY = 128


def test_the_settings_name_the_registrys_entries() -> None:
    literal, other = get_args(OptimizerName)
    assert set(get_args(literal)) == set(OPTIMIZERS)
    assert other is str, "a plugin may register others"


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_one_step_leaves_the_state_that_the_entry_names(name: str) -> None:
    spec, model = OPTIMIZERS[name], new_gpt2(SHAPE, VOCABULARY, 1)
    optimizer = spec.build(GPT2.param_groups(model), OptimSettings(name=name), torch.device("cpu"))
    assert not optimizer.state, "before the first step a checkpoint holds weights alone"
    ids = torch.randint(0, VOCABULARY, (2, SHAPE.block_size))
    model(ids, ids, VOCABULARY).backward()
    optimizer.step()
    kept = [(parameter, key, value) for parameter, state in optimizer.state.items() for key, value in state.items()]
    assert set(optimizer.state) == set(model.parameters())
    assert {key for _, key, _ in kept} == spec.state_keys | spec.scalar_keys
    assert all(value.shape == parameter.shape for parameter, key, value in kept if key in spec.state_keys)
    assert all(value.numel() == 1 for _, key, value in kept if key in spec.scalar_keys)
    held = sum(value.numel() * value.element_size() for _, key, value in kept if key in spec.state_keys)
    parameters, matrices = GPT2.num_params(SHAPE, VOCABULARY), GPT2.num_matrix_params(SHAPE)
    assert held == spec.state_bytes(parameters, matrices)
