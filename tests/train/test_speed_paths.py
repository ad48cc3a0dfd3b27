"""Each way to compute faster trains as the plain way does, over fifty updates."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel

from configs.schema import ModelSettings, Precision, TrainSettings
from train import chunked_loss
from train.compiler import missing_compiler
from train.kernels import configured
from train.model import SpecialTokenIds, TrainedGPT2, new_model
from train.objective import next_token_nats
from train.optim import new_optimizer
from train.parameter_tensors import clip_and_step

STEPS, BATCH, BLOCK, VOCABULARY = 50, 4, 32, 300
TOLERANCE = 1e-5
"""Relative. Two orders of summation differ by some units of fp32's last place, 6e-8 each, in every loss and gradient.
AdamW divides a gradient by its own size, so such a difference is no smaller in the weights' change, and it grows from
step to step. Seen: 2e-7 over fifty. A wrong term shows at the first step, far above this."""
ROUNDING_OF_BF16 = 2**-8
"""Relative, of one number; seen over fifty losses: 0.0004 so, 0.0006 with torch's attention."""
TRAIN = TrainSettings(learning_rate=1e-3, precision="fp32", activation_checkpointing=False)


def untouched_model() -> TrainedGPT2:
    shape = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=BLOCK)
    model = new_model(shape, VOCABULARY, SpecialTokenIds(0, 1, 2, 3), seed=5)
    with torch.no_grad():
        # New weights are so small that every activation is a straight line and every answer equally likely.
        for block in model.transformer.h:
            block.mlp.c_fc.weight.mul_(20)
        model.transformer.wte.weight.mul_(5)
    return model


def losses(
    model: GPT2LMHeadModel, is_plain: bool, train: TrainSettings = TRAIN, precision: Precision = "fp32"
) -> list[float]:
    """Of each update, on the same samples: text of a small grammar, which can be learnt."""
    generator = torch.Generator().manual_seed(7)
    optimizer = new_optimizer(model, train, torch.device("cpu"))
    seen = []
    for _ in range(STEPS):
        begins = torch.randint(0, VOCABULARY, (BATCH, 1), generator=generator)
        ids = (begins + torch.arange(BLOCK + 1) * 7) % VOCABULARY
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if is_plain:
                nats = next_token_nats(model(inputs, use_cache=False).logits, targets, VOCABULARY)
            else:
                nats = model(inputs, targets, VOCABULARY)
        (nats / targets.numel()).backward()
        clip_and_step(model, optimizer, train.clip_norm, None)
        seen.append(float(nats.detach()) / targets.numel())
    return seen


def plain_losses() -> list[float]:
    """`transformers`' model, activation and logits as they are, and torch's cross-entropy over all of them."""
    seen = losses(untouched_model(), is_plain=True)
    assert seen[-1] < 0.9 * seen[0]
    return seen


def test_the_chunked_loss_trains_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "loss_positions", lambda vocab_size, device_type: 24)  # the last one is smaller
    assert losses(untouched_model(), is_plain=False) == pytest.approx(plain_losses(), rel=TOLERANCE)


def test_the_activation_in_one_pass_trains_as_transformers_own() -> None:
    model = configured(untouched_model(), TRAIN, "fp32", document_mask=False)
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
    model = configured(untouched_model(), faster, "fp32", document_mask=False)
    assert losses(model, is_plain=False) == pytest.approx(plain_losses(), rel=TOLERANCE)


def test_attention_on_a_processor_trains_as_torchs_in_bf16_does_and_no_farther_from_fp32() -> None:
    exact = plain_losses()
    ours = configured(untouched_model(), TRAIN, "bf16", document_mask=False)
    torchs = configured(untouched_model(), TRAIN, "bf16", document_mask=False)
    torchs.set_attn_implementation("sdpa")

    def farthest(model: GPT2LMHeadModel) -> float:
        seen = losses(model, is_plain=False, precision="bf16")
        return max(abs(one - other) / other for one, other in zip(seen, exact, strict=True))

    assert 0 < farthest(ours) < ROUNDING_OF_BF16 and 0 < farthest(torchs) < ROUNDING_OF_BF16
