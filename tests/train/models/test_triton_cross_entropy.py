"""The loss as a kernel of Triton, on a GPU or by Triton's interpreter: in place of a GPU, that runs it on a CPU."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from malmoi.train.models.cross_entropy import chunk_loss_in_place
from malmoi.train.models.spec import IGNORE_INDEX
from tests.launching import ROOT, environment
from tests.time_limits import seconds
from tests.train.models.test_speed_paths import TOLERANCE, losses, plain_losses, untouched_model

SHAPES = [(300, 320), (4_096, 4_096), (9_000, 9_024), (20_000, 20_032)]
"""Vocabularies and their padding: less than a program reads at once, exactly that, and more."""


def compare(device: str) -> None:
    """Set the kernel against the plain form, for every shape and type; raise where they differ."""
    from malmoi.train.models.triton_cross_entropy import triton_chunk_loss

    for vocab_size, padded in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            torch.manual_seed(vocab_size)
            logits = (4 * torch.randn(12, padded)).to(dtype).to(device)
            logits[:, vocab_size:] = 50.0
            targets = torch.randint(0, vocab_size, (12, 1)).to(device)
            targets[::5] = IGNORE_INDEX
            plain = chunk_loss_in_place(logits.clone(), targets, vocab_size)
            ours = triton_chunk_loss(logits.clone(), targets, vocab_size)
            assert ours[1].dtype == dtype and not ours[1][:, vocab_size:].any()
            torch.testing.assert_close(ours[0], plain[0], rtol=1e-6, atol=0)
            rounding = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-7}
            torch.testing.assert_close(ours[1], plain[1], **rounding)
    for wrong in (float("nan"), float("inf")):
        logits = torch.zeros(2, 320, device=device)
        logits[1, 7] = wrong
        loss_sum, gradient = triton_chunk_loss(logits, torch.zeros(2, 1, dtype=torch.int64, device=device), 300)
        assert not loss_sum.isfinite() and not gradient[1].isfinite().all(), "what has gone wrong must be seen"
    possible = torch.full((1, 320), -torch.inf, device=device)
    possible[0, 9] = 1.0
    loss_sum, gradient = triton_chunk_loss(possible, torch.tensor([[9]], device=device), 300)
    assert loss_sum == 0 and not gradient.any()


def train_by_it() -> None:
    """Train for fifty steps by the kernel, and raise where the losses differ from the plain ones."""
    from malmoi.train.models.triton_cross_entropy import triton_chunk_loss

    model = untouched_model()
    model.lm_head.chunk_loss = triton_chunk_loss
    assert losses(model, is_plain=False) == pytest.approx(plain_losses(), rel=TOLERANCE)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed; torch brings it with CUDA")
@pytest.mark.parametrize("call", ["compare('cpu')", pytest.param("train_by_it()", marks=pytest.mark.soak)])
def test_the_kernel_equals_the_form_in_place(call: str) -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    code = f"from tests.train.models.test_triton_cross_entropy import *; {call}"
    interpreted = {**environment(), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=interpreted, capture_output=True, text=True, timeout=seconds(200)
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_the_kernel_equals_the_form_in_place_on_a_gpu() -> None:
    compare("cuda")
