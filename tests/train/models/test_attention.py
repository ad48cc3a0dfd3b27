"""Attention in 16 bits on a CPU, computed in the type that is faster, and the mask of documents."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from malmoi.configs.model import ModelSettings
from malmoi.configs.train import Precision, TrainSettings
from malmoi.train.data.document_mask import Batch
from malmoi.train.models.attention import CPU_SDPA, LONG, cpu_sdpa, document_mask
from malmoi.train.tasks.language_modeling import batch_loss_sum
from tests.train.streams import CPU, VOCABULARY, grads, marked, stream_of
from tests.train.training_models import configured, new_gpt2

BLOCK = 32
DOCUMENTS_APART = marked(stream_of([[5, 9, 1, 3, 30], [7, 7, 2, 2, 11]])[0], "two", 3, BLOCK)
ONE_TEXT = replace(DOCUMENTS_APART, doc_starts=None)
either_batch = pytest.mark.parametrize(
    "batch", [pytest.param(ONE_TEXT, id="one text"), pytest.param(DOCUMENTS_APART, id="documents apart")]
)


@either_batch
def test_short_attention_on_a_cpu_is_as_near_to_fp32_as_torchs_in_bf16(batch: Batch) -> None:
    def gradients(precision: Precision, implementation: str) -> list[torch.Tensor]:
        shape = ModelSettings(n_layer=3, n_head=2, n_embd=16, block_size=BLOCK)
        model = configured(new_gpt2(shape, VOCABULARY, 5), TrainSettings(), precision)
        if not torch.cuda.is_available():
            assert model.config._attn_implementation == ("sdpa" if precision == "fp32" else CPU_SDPA)
        with torch.no_grad():
            for block in model.transformer.h:
                block.attn.c_attn.weight.mul_(20)  # so that attention is not spread evenly
        model.set_attn_implementation(implementation)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            batch_loss_sum(model, batch, VOCABULARY, CPU, "sdpa").backward()
        return grads(model)

    exact = gradients("fp32", "sdpa")

    def error(implementation: str) -> float:
        apart = [one - other for one, other in zip(gradients("bf16", implementation), exact, strict=True)]
        return float(torch.nn.utils.get_total_norm(apart) / torch.nn.utils.get_total_norm(exact))

    assert error(CPU_SDPA) < 0.05 and error("sdpa") < 0.05


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
def test_attention_on_a_cpu_is_computed_in_the_type_that_is_faster(
    dtype: torch.dtype, length: int, computed_in: torch.dtype, masked: bool
) -> None:
    torch.manual_seed(3)
    vectors = [torch.randn(1, 2, length, 64).to(dtype) for _ in range(3)]
    sees = torch.ones(1, 1, length, length, dtype=torch.bool).tril() if masked else None
    mixed, _ = cpu_sdpa(nn.Module(), *vectors, sees, is_causal=not masked)
    plain = functional.scaled_dot_product_attention(
        *(part.to(computed_in) for part in vectors), attn_mask=sees, is_causal=not masked
    )
    assert mixed.dtype == dtype
    assert torch.equal(mixed, plain.transpose(1, 2).to(dtype))


def test_an_input_attends_to_its_own_document_up_to_itself() -> None:
    starts = torch.tensor([[0, 0, 2, 2, 2], [0, 1, 1, 1, 4]])
    sees = document_mask(starts, "sdpa")
    assert sees.shape == (2, 1, 5, 5) and sees.dtype == torch.bool
    for row, places in enumerate(starts.tolist()):
        for query in range(5):
            attended = np.flatnonzero(sees[row, 0, query]).tolist()
            assert attended == list(range(places[query], query + 1))
    added = document_mask(starts, "eager")
    assert torch.equal(added == 0, sees)
    assert (added[~sees] == torch.finfo(torch.float32).min).all()
