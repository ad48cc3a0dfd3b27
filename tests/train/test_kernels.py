"""Each way to compute gives the plain way's numbers."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2LMHeadModel

from configs.errors import BadInput
from configs.schema import ModelSettings, Precision, RunSettings, TrainSettings
from tests.launching import step_losses
from tests.train.streams import CPU, VOCABULARY, grads, marked, stream_of
from train.attention import LONG, PROCESSOR_SDPA, processor_sdpa
from train.compiler import missing_compiler
from train.documents import Batch
from train.kernels import configured
from train.model import SpecialTokenIds, new_model
from train.objective import batch_nats
from train.run import run

BLOCK = 32
PLAIN = TrainSettings()


def made(train: TrainSettings, dropout: float = 0.0) -> GPT2LMHeadModel:
    shape = ModelSettings(n_layer=3, n_head=2, n_embd=16, block_size=BLOCK, dropout=dropout)
    return configured(new_model(shape, VOCABULARY, SpecialTokenIds(0, 1, 2, 3), 5), train, "fp32", False)


def loss_and_gradient(train: TrainSettings, batch: Batch, dropout: float = 0.0) -> tuple[float, list[torch.Tensor]]:
    model = made(train, dropout)
    torch.manual_seed(9)
    nats = batch_nats(model, batch, VOCABULARY, CPU, train.attention)
    nats.backward()
    return float(nats.detach()), grads(model)


DOCUMENTS_APART = marked(stream_of([[5, 9, 1, 3, 30], [7, 7, 2, 2, 11]])[0], "two", 3, BLOCK)
WHOLE_SAMPLE = replace(DOCUMENTS_APART, begins=None)
either_batch = pytest.mark.parametrize(
    "batch", [pytest.param(WHOLE_SAMPLE, id="whole sample"), pytest.param(DOCUMENTS_APART, id="documents apart")]
)


def assert_equal(one: tuple[float, list[torch.Tensor]], other: tuple[float, list[torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    for ours, theirs in zip(one[1], other[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@either_batch
def test_plain_attention_equals_the_fused_kernel(batch: Batch) -> None:
    assert made(replace(PLAIN, attention="eager")).config._attn_implementation == "eager"
    assert_equal(loss_and_gradient(replace(PLAIN, attention="eager"), batch), loss_and_gradient(PLAIN, batch))


@either_batch
def test_short_attention_on_a_processor_is_as_near_to_fp32_as_torchs_in_bf16(batch: Batch) -> None:
    def gradients(precision: Precision, implementation: str) -> list[torch.Tensor]:
        shape = ModelSettings(n_layer=3, n_head=2, n_embd=16, block_size=BLOCK)
        model = configured(new_model(shape, VOCABULARY, SpecialTokenIds(0, 1, 2, 3), 5), PLAIN, precision, False)
        if not torch.cuda.is_available():
            assert model.config._attn_implementation == ("sdpa" if precision == "fp32" else PROCESSOR_SDPA)
        with torch.no_grad():
            for block in model.transformer.h:
                block.attn.c_attn.weight.mul_(20)  # so that attention looks somewhere
        model.set_attn_implementation(implementation)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            batch_nats(model, batch, VOCABULARY, CPU, "sdpa").backward()
        return grads(model)

    exact = gradients("fp32", "sdpa")

    def error(implementation: str) -> float:
        apart = [one - other for one, other in zip(gradients("bf16", implementation), exact, strict=True)]
        return float(torch.nn.utils.get_total_norm(apart) / torch.nn.utils.get_total_norm(exact))

    assert error(PROCESSOR_SDPA) < 0.05 and error("sdpa") < 0.05


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "length", "computed_in"),
    [
        (torch.bfloat16, LONG // 64 - 1, torch.float32),
        (torch.bfloat16, LONG // 64, torch.bfloat16),
        (torch.float16, LONG // 64, torch.float32),
        (torch.float32, LONG // 64, torch.float32),
    ],
)
def test_attention_on_a_processor_is_computed_in_the_type_that_is_faster(
    dtype: torch.dtype, length: int, computed_in: torch.dtype, masked: bool
) -> None:
    torch.manual_seed(3)
    vectors = [torch.randn(1, 2, length, 64).to(dtype) for _ in range(3)]
    sees = torch.ones(1, 1, length, length, dtype=torch.bool).tril() if masked else None
    mixed, _ = processor_sdpa(nn.Module(), *vectors, sees, is_causal=not masked)
    plain = functional.scaled_dot_product_attention(
        *(part.to(computed_in) for part in vectors), attn_mask=sees, is_causal=not masked
    )
    assert mixed.dtype == dtype
    assert torch.equal(mixed, plain.transpose(1, 2).to(dtype))


def test_the_activation_in_one_pass_equals_transformers_own() -> None:
    shape = ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=BLOCK)
    plain = new_model(shape, VOCABULARY, SpecialTokenIds(0, 1, 2, 3), 5).transformer.h[0].mlp.act
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
            batch_nats(model, batch, VOCABULARY, CPU, "sdpa")
        kept[on] = sizes[0]
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.skipif(missing_compiler() is not None, reason=f"torch.compile: {missing_compiler()}")
def test_compiled_blocks_equal_plain_ones_and_keep_their_names() -> None:
    compiled = replace(PLAIN, compile=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_equal(loss_and_gradient(compiled, WHOLE_SAMPLE), loss_and_gradient(PLAIN, WHOLE_SAMPLE))
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
    assert run(replace(tiny_settings, run=str(tmp_path / "run"), train=train)) == 0
    pairs = zip(step_losses(finished_run), step_losses(tmp_path / "run"), strict=True)
    assert max(abs(one - other) for one, other in pairs) < 5e-6
    assert "attn_implementation" not in (tmp_path / "run" / "model" / "config.json").read_text()


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"train.compile: no C\+\+ compiler 'no-such-compiler' on the PATH"):
        made(replace(PLAIN, compile=True))


def test_flash_attention_is_refused_where_it_cannot_be() -> None:
    model = new_model(ModelSettings(n_layer=1, n_head=1, n_embd=8), 10, SpecialTokenIds(0, 1, 2, 3), 0)
    flash = replace(PLAIN, attention="flash_attention_2")
    with pytest.raises(BadInput, match=r"takes no mask, which data.document_mask needs"):
        configured(model, flash, "bf16", True)
    with pytest.raises(BadInput, match="computes in 16 bits only"):
        configured(model, flash, "fp32", False)
    if find_spec("flash_attn") is None:
        with pytest.raises(BadInput, match="needs the package flash-attn, which is not installed"):
            configured(model, flash, "bf16", False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_flash_attention_equals_the_fused_kernel_within_bf16() -> None:
    stream, _ = stream_of([[70]])
    batch = replace(marked(stream, "one", 3, BLOCK), begins=None)
    shape = ModelSettings(n_layer=3, n_head=2, n_embd=64, block_size=BLOCK)
    nats = []
    for attention in ("sdpa", "flash_attention_2"):
        model = new_model(shape, VOCABULARY, SpecialTokenIds(0, 1, 2, 3), 5).cuda()
        train = replace(PLAIN, attention=attention)
        configured(model, train, "bf16", False)
        with torch.autocast("cuda", torch.bfloat16):
            nats.append(float(batch_nats(model, batch, VOCABULARY, torch.device("cuda"), train.attention)))
    assert nats[0] == pytest.approx(nats[1], rel=1e-2)
