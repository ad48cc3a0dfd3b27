"""The parts of a step that have more than one form: attention, the loss, and what is compiled.

    python benchmarks/step_forms.py [--device cuda --precision bf16 --shape 124M --batch 64] [--quick]

Milliseconds, medians of repeated calls after warm-up, all in one process: forward and backward of causal attention of
one layer by each of torch's kernels, and in fp32 where a processor computes in 16 bits, there also of samples eight
times as long; the loss with its gradients in place and as one compiled kernel, by the size of a chunk, and as Liger's
fused loss where that package is installed; forward and backward of the whole model as it is, with torch's attention in
16 bits, with compiled blocks, and compiled as a whole. Forms of the model take turns. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch
from sides.data import Shape, add_shape_options, asked_shape, set_threads
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs.schema import ModelSettings, Precision, TrainSettings
from train import chunked_loss
from train.chunked_loss import ChunkedNats, LossOfChunk, loss_in_place, loss_of_device
from train.documents import NOT_COUNTED
from train.kernels import configured
from train.model import SpecialTokenIds, TrainedGPT2, context_vectors, new_model
from train.size import padded_vocabulary

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CHUNKS = {"cuda": (2**25, 2**26, 2**27, 2**28), "cpu": (2**20, 2**22, 2**24)}
"""Logits of a chunk."""
REPEATS = 10


@dataclass(frozen=True)
class Timed:
    """One form of a part."""

    form: str
    milliseconds: float


@dataclass(frozen=True)
class Figures:
    """What a run of this script saw."""

    shape: dict[str, int]
    device: str
    name: str
    precision: str
    attention: list[Timed]
    loss: list[Timed]
    model: list[Timed]


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    for _ in range(2):
        work()
    return round(1e3 * statistics.median(seconds_of(work, device) for _ in range(repeats)), 3)


def attention_forms(shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int) -> Iterator[Timed]:
    heads = max(1, shape.width // 64)
    size = (shape.batch, shape.block, heads, shape.width // heads)
    joint = torch.randn(shape.batch, shape.block, 3 * shape.width, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(size, device=device, dtype=dtype).transpose(1, 2)

    def both_ways() -> None:
        query, key, value = (part.view(size).transpose(1, 2) for part in joint.split(shape.width, 2))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(mixed, joint, gradient)

    named = {"as torch chooses": None, **(KERNELS if device.type == "cuda" else {})}
    for name, kernel in named.items():
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            yield Timed(name, milliseconds(both_ways, device, repeats))
    if device.type == "cpu" and dtype != torch.float32:
        joint, gradient = joint.detach().float().requires_grad_(), gradient.float()
        yield Timed("in fp32", milliseconds(both_ways, device, repeats))


def attention_of_lengths(shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int) -> Iterator[Timed]:
    """On a processor also samples eight times as long, as many tokens in all."""
    yield from attention_forms(shape, device, dtype, repeats)
    if device.type == "cpu":
        longer = replace(shape, block=8 * shape.block, batch=max(1, shape.batch // 8))
        for timed in attention_forms(longer, device, dtype, repeats):
            yield replace(timed, form=f"{timed.form}, {longer.block:,} tokens")


def loss_as_formula(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """`LossOfChunk` as a formula, for `torch.compile` to make a kernel of that reads logits and writes gradients."""
    counted = targets != NOT_COUNTED
    columns = torch.arange(logits.shape[1], device=logits.device)
    logprobs = torch.log_softmax(logits.float().masked_fill(columns >= vocab_size, -torch.inf), 1)
    is_answer = columns == targets
    nats = -logprobs.where(is_answer, 0).sum()
    return nats, ((logprobs.exp() - is_answer.float()) * counted).to(logits.dtype)


def loss_forms(shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int) -> Iterator[Timed]:
    positions = shape.batch * shape.block
    hidden = torch.randn(positions, shape.width, device=device, requires_grad=True)
    matrix = (0.02 * torch.randn(padded_vocabulary(shape.vocab), shape.width, device=device)).requires_grad_()
    targets = torch.randint(0, shape.vocab, (positions,), device=device)
    compiled = torch.compile(loss_as_formula)

    def both_ways(form: LossOfChunk) -> None:
        nats = ChunkedNats.apply(hidden, matrix, targets, shape.vocab, dtype, True, form)
        torch.autograd.grad(nats, (hidden, matrix))

    by_setting = chunked_loss.loss_positions
    for logits in CHUNKS[device.type]:
        chunked_loss.loss_positions = lambda vocab, kind, most=logits: max(64, most // vocab // 64 * 64)
        for name, form in (("in place", loss_in_place), ("compiled", compiled), ("a kernel", loss_of_device)):
            if name == "a kernel" and device.type == "cpu":
                continue
            took = milliseconds(lambda form=form: both_ways(form), device, repeats)
            yield Timed(f"{name}, {logits:,} logits a chunk", took)
    chunked_loss.loss_positions = by_setting
    if device.type == "cuda" and find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
        vectors = hidden.detach().to(dtype).requires_grad_()

        def its_way() -> None:
            torch.autograd.grad(liger(matrix.to(dtype), vectors, targets), (vectors, matrix))

        yield Timed("Liger's", milliseconds(its_way, device, repeats))


class CompiledWhole(nn.Module):
    """All but the loss as one graph."""

    def __init__(self, model: TrainedGPT2, precision: Precision) -> None:
        super().__init__()
        self.model = configured(model, TrainSettings(compile=False), precision, False)
        self.vectors = torch.compile(context_vectors)

    def forward(self, input_ids: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        nats: Tensor = self.model.lm_head(self.vectors(self.model.transformer, input_ids), targets, vocab_size)
        return nats


def with_torch_attention(model: TrainedGPT2, precision: Precision) -> nn.Module:
    configured(model, TrainSettings(compile=False), precision, False).set_attn_implementation("sdpa")
    return model


FORMS: dict[str, Callable[[TrainedGPT2, Precision], nn.Module]] = {
    "as it is": lambda model, precision: configured(model, TrainSettings(compile=False), precision, False),
    "torch's attention in 16 bits": with_torch_attention,
    "blocks compiled": lambda model, precision: configured(model, TrainSettings(compile=True), precision, False),
    "compiled as a whole": CompiledWhole,
}


def model_forms(shape: Shape, device: torch.device, precision: Precision, repeats: int) -> Iterator[Timed]:
    settings = ModelSettings(shape.layers, max(1, shape.width // 64), shape.width, shape.block)
    ids = torch.randint(0, shape.vocab, (shape.batch, shape.block), device=device)
    works: dict[str, Callable[[], None]] = {}
    for name, form in FORMS.items():
        if name == "torch's attention in 16 bits" and (device.type == "cuda" or precision == "fp32"):
            continue  # the same as it is
        model = form(new_model(settings, shape.vocab, SpecialTokenIds(0, 1, 2, 3), 1).to(device), precision)

        def both_ways(model: nn.Module = model) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                nats = model(ids, ids, shape.vocab)
            nats.backward()
            model.zero_grad(set_to_none=True)

        works[name] = both_ways
        both_ways()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds_of(work, device))
    for name, seconds in taken.items():
        yield Timed(name, round(1e3 * statistics.median(seconds), 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser, "14M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, help="none: one a core")
    options = parser.parse_args()
    shape, device = asked_shape(options), torch.device(options.device)
    torch.set_num_threads(set_threads(options.threads))
    torch.backends.cuda.matmul.allow_tf32 = True
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    repeats = 1 if options.quick else REPEATS
    figures = Figures(
        asdict(shape),
        options.device,
        torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        options.precision,
        list(attention_of_lengths(shape, device, dtype, repeats)),
        list(loss_forms(shape, device, dtype, repeats)),
        list(model_forms(shape, device, options.precision, repeats)),
    )
    for part in ("attention", "loss", "model"):
        for timed in getattr(figures, part):
            print(f"{part:10} {timed.form:36} {timed.milliseconds:10.2f} ms")
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
