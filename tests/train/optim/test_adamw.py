"""AdamW over a model's parameters."""

import torch

from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.train.models import MODELS
from malmoi.train.optim import OPTIMIZERS
from tests.train.training_models import new_gpt2

CPU = torch.device("cpu")
SHAPE = ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=4)


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    model = new_gpt2(SHAPE, 10, 0)
    optimizer = OPTIMIZERS["adamw"].build(MODELS["gpt2"].param_groups(model), OptimSettings(weight_decay=0.1), CPU)
    decaying, rest = optimizer.param_groups
    assert decaying["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert {p.dim() for p in decaying["params"]} == {2}
    assert {p.dim() for p in rest["params"]} == {1}
    assert len(decaying["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_it_is_torchs_adamw_with_the_settings() -> None:
    settings = OptimSettings(lr=0.02, betas=(0.8, 0.7), eps=1e-3, weight_decay=0.3)
    ours, theirs = new_gpt2(SHAPE, 10, 0), new_gpt2(SHAPE, 10, 0)
    of_settings = OPTIMIZERS["adamw"].build(MODELS["gpt2"].param_groups(ours), settings, CPU)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.3},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    of_torch = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.7), eps=1e-3, fused=True)
    ids = torch.randint(0, 10, (2, 4))
    for _ in range(3):
        for model, optimizer in ((ours, of_settings), (theirs, of_torch)):
            model(ids, ids, 10).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
