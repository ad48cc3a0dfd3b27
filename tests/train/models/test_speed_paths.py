"""Each way to compute faster trains as the plain way does, over fifty optimizer steps."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.configs.train import Precision, TrainSettings
from malmoi.train.backends.state_dict import clip_and_step
from malmoi.train.models import MODELS, cross_entropy
from malmoi.train.models.compute import missing_compiler
from malmoi.train.models.cross_entropy import plain_loss_sum
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.optim import OPTIMIZERS
from tests.train.training_models import configured, new_gpt2

STEPS, BATCH, BLOCK, VOCABULARY = 50, 4, 32, 300
TOLERANCE = 1e-5
"""Relative. Two orders of summation differ by some units of fp32's last place, 6e-8 each, in every loss and gradient.
AdamW divides a gradient by its own size, so such a difference is no smaller in the weights' change, and it grows from
step to step. Seen: 2e-7 over fifty. A wrong term shows at the first step, far above this."""
ROUNDING_OF_BF16 = 2**-8
"""Relative, of one number; seen over fifty losses: 0.0004 so, 0.0006 with torch's attention."""
TRAIN = TrainSettings(precision="fp32", activation_checkpointing=False)
OPTIM = OptimSettings(lr=1e-3)


def untouched_model() -> TrainingGPT2:
    shape = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=BLOCK)
    model = new_gpt2(shape, VOCABULARY, seed=5)
    with torch.no_grad():
        # New weights are so small that every activation is a straight line and every answer equally likely.
        for block in model.transformer.h:
            block.mlp.c_fc.weight.mul_(20)
        model.transformer.wte.weight.mul_(5)
    return model


def losses(model: TrainingGPT2, is_plain: bool, precision: Precision = "fp32") -> list[float]:
    """Return the loss of each step, on the same samples: text of a small grammar, which can be learned."""
    generator = torch.Generator().manual_seed(7)
    optimizer = OPTIMIZERS[OPTIM.name].build(MODELS["gpt2"].param_groups(model), OPTIM, torch.device("cpu"))
    seen = []
    for _ in range(STEPS):
        begins = torch.randint(0, VOCABULARY, (BATCH, 1), generator=generator)
        ids = (begins + torch.arange(BLOCK + 1) * 7) % VOCABULARY
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if is_plain:
                loss_sum = plain_loss_sum(model(inputs, use_cache=False).logits, targets, VOCABULARY)
            else:
                loss_sum = model(inputs, targets, VOCABULARY)
        (loss_sum / targets.numel()).backward()
        clip_and_step(model, optimizer, OPTIM.max_grad_norm, None)
        seen.append(float(loss_sum.detach()) / targets.numel())
    return seen


def plain_losses() -> list[float]:
    """Return the losses of `transformers`' own activation and logits, and of torch's cross-entropy over all of them."""
    seen = losses(untouched_model(), is_plain=True)
    assert seen[-1] < 0.9 * seen[0]
    return seen


def test_the_chunked_loss_trains_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_positions", lambda vocab_size, device_type: 24)  # the last one is smaller
    assert losses(untouched_model(), is_plain=False) == pytest.approx(plain_losses(), rel=TOLERANCE)


def test_the_activation_in_one_pass_trains_as_transformers_own() -> None:
    model = configured(untouched_model(), TRAIN, "fp32")
    assert isinstance(model.transformer.h[0].mlp.act, nn.GELU)
    assert losses(model, is_plain=True) == pytest.approx(plain_losses(), rel=TOLERANCE)


@pytest.mark.parametrize(
    "faster",
    [
        pytest.param(TRAIN, id="all that is on without being asked for"),
        pytest.param(replace(TRAIN, activation_checkpointing=True), id="activation checkpointing"),
        pytest.param(
            replace(TRAIN, compile=True),
            id="compiled blocks",
            marks=pytest.mark.skipif(missing_compiler() is not None, reason=f"{missing_compiler()}"),
        ),
    ],
)
def test_a_model_as_it_is_configured_trains_as_the_plain_one(faster: TrainSettings) -> None:
    model = configured(untouched_model(), faster, "fp32")
    assert losses(model, is_plain=False) == pytest.approx(plain_losses(), rel=TOLERANCE)


def test_attention_on_a_cpu_trains_as_torchs_in_bf16_does_and_no_farther_from_fp32() -> None:
    exact = plain_losses()
    ours = configured(untouched_model(), TRAIN, "bf16")
    torchs = configured(untouched_model(), TRAIN, "bf16")
    torchs.set_attn_implementation("sdpa")

    def farthest(model: TrainingGPT2) -> float:
        seen = losses(model, is_plain=False, precision="bf16")
        return max(abs(one - other) / other for one, other in zip(seen, exact, strict=True))

    assert 0 < farthest(ours) < ROUNDING_OF_BF16 and 0 < farthest(torchs) < ROUNDING_OF_BF16
