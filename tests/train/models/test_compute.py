"""Each way to compute gives the numbers of the plain way."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from malmoi.configs.model import ModelSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.errors import UserError
from malmoi.train.data.document_mask import Batch
from malmoi.train.models.compute import missing_compiler
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.pretrain import pretrain
from malmoi.train.tasks.language_modeling import batch_loss_sum
from tests.launching import step_losses
from tests.train.streams import CPU, VOCABULARY, grads, marked, stream_of
from tests.train.training_models import configured, new_gpt2

BLOCK = 32
PLAIN = TrainSettings()


def made(train: TrainSettings, dropout: float = 0.0) -> TrainingGPT2:
    shape = ModelSettings(n_layer=3, n_head=2, n_embd=16, block_size=BLOCK, dropout=dropout)
    return configured(new_gpt2(shape, VOCABULARY, 5), train)


def loss_and_gradient(train: TrainSettings, batch: Batch, dropout: float = 0.0) -> tuple[float, list[torch.Tensor]]:
    model = made(train, dropout)
    torch.manual_seed(9)
    loss_sum = batch_loss_sum(model, batch, VOCABULARY, CPU, train.attention)
    loss_sum.backward()
    return float(loss_sum.detach()), grads(model)


DOCUMENTS_APART = marked(stream_of([[5, 9, 1, 3, 30], [7, 7, 2, 2, 11]])[0], "two", 3, BLOCK)
ONE_TEXT = replace(DOCUMENTS_APART, doc_starts=None)
either_batch = pytest.mark.parametrize(
    "batch", [pytest.param(ONE_TEXT, id="one text"), pytest.param(DOCUMENTS_APART, id="documents apart")]
)


def assert_equal(one: tuple[float, list[torch.Tensor]], other: tuple[float, list[torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    for ours, theirs in zip(one[1], other[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@either_batch
def test_plain_attention_equals_the_fused_kernel(batch: Batch) -> None:
    assert made(replace(PLAIN, attention="eager")).config._attn_implementation == "eager"
    assert_equal(loss_and_gradient(replace(PLAIN, attention="eager"), batch), loss_and_gradient(PLAIN, batch))


def test_the_activation_in_one_pass_equals_transformers_own() -> None:
    shape = ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=BLOCK)
    plain = new_gpt2(shape, VOCABULARY, 5).transformer.h[0].mlp.act
    ours = made(PLAIN).transformer.h[0].mlp.act
    assert type(ours) is not type(plain)
    # Near zero, where a new model's vectors are, every form of GELU is nearly the same.
    vectors = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(ours(vectors), plain(vectors), rtol=1e-5, atol=1e-6)


@either_batch
def test_activation_checkpointing_gives_the_same_bits_dropout_included(batch: Batch) -> None:
    less = loss_and_gradient(replace(PLAIN, activation_checkpointing=True), batch, dropout=0.2)
    plain = loss_and_gradient(PLAIN, batch, dropout=0.2)
    assert less[0] == plain[0]
    assert all(torch.equal(one, other) for one, other in zip(less[1], plain[1], strict=True))


@either_batch
def test_activation_checkpointing_keeps_less_for_the_backward_pass(batch: Batch) -> None:
    kept = {}
    for on in (False, True):
        model, sizes = made(replace(PLAIN, activation_checkpointing=on)), [0]

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            batch_loss_sum(model, batch, VOCABULARY, CPU, "sdpa")
        kept[on] = sizes[0]
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.skipif(missing_compiler() is not None, reason=f"torch.compile: {missing_compiler()}")
def test_compiled_blocks_equal_plain_ones_and_keep_their_names() -> None:
    compiled = replace(PLAIN, compile=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_equal(loss_and_gradient(compiled, ONE_TEXT), loss_and_gradient(PLAIN, ONE_TEXT))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert made(compiled).state_dict().keys() == made(PLAIN).state_dict().keys()


@pytest.mark.skipif(missing_compiler() is not None, reason=f"torch.compile: {missing_compiler()}")
def test_compilation_and_activation_checkpointing_go_together() -> None:
    both = replace(PLAIN, compile=True, activation_checkpointing=True)
    assert_equal(loss_and_gradient(both, DOCUMENTS_APART), loss_and_gradient(PLAIN, DOCUMENTS_APART))


def test_a_run_with_other_kernels_has_the_same_curve(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    train = replace(tiny_settings.train, attention="eager", activation_checkpointing=True)
    assert pretrain(replace(tiny_settings, run=str(tmp_path / "run"), train=train)) == 0
    pairs = zip(step_losses(finished_run), step_losses(tmp_path / "run"), strict=True)
    assert max(abs(one - other) for one, other in pairs) < 5e-6
    assert "attn_implementation" not in (tmp_path / "run" / "model" / "config.json").read_text()


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"train.compile: no C\+\+ compiler 'no-such-compiler' on the PATH"):
        made(replace(PLAIN, compile=True))


def test_flash_attention_is_refused_where_it_cannot_be() -> None:
    model = new_gpt2(ModelSettings(n_layer=1, n_head=1, n_embd=8), 10, 0)
    flash = replace(PLAIN, attention="flash_attention_2")
    with pytest.raises(UserError, match=r"takes no mask, which data.document_mask needs"):
        configured(model, flash, "bf16", True)
    with pytest.raises(UserError, match="computes in 16 bits only"):
        configured(model, flash, "fp32")
    if find_spec("flash_attn") is None:
        with pytest.raises(UserError, match="needs the package flash-attn, which is not installed"):
            configured(model, flash, "bf16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_flash_attention_equals_the_fused_kernel_within_bf16() -> None:
    stream, _ = stream_of([[70]])
    batch = replace(marked(stream, "one", 3, BLOCK), doc_starts=None)
    shape = ModelSettings(n_layer=3, n_head=2, n_embd=64, block_size=BLOCK)
    sums = []
    for attention in ("sdpa", "flash_attention_2"):
        model = new_gpt2(shape, VOCABULARY, 5).cuda()
        train = replace(PLAIN, attention=attention)
        configured(model, train, "bf16")
        with torch.autocast("cuda", torch.bfloat16):
            sums.append(float(batch_loss_sum(model, batch, VOCABULARY, torch.device("cuda"), train.attention)))
    assert sums[0] == pytest.approx(sums[1], rel=1e-2)
