"""The parts of a step that have more than one form: attention, the loss, and what is compiled.

    python benchmarks/step_forms.py [--device cuda --precision bf16 --shape 124M --batch 64] [--quick]

Milliseconds, medians of repeated calls after warm-up, all in one process: forward and backward of causal attention of
one layer by each of torch's kernels, and in fp32 where a processor computes in 16 bits, there also of samples eight
times as long; the loss with its gradients in place and as one compiled kernel, by the size of a chunk, and as Liger's
fused loss where that package is installed; forward and backward of the model as it is, with torch's attention in
16 bits, with compiled blocks, and compiled as a whole. Forms of the model take turns. The last line is one JSON object.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch
from harness import in_turns, median, new_parser, parse_options, print_figures, seconds_of
from sides.turns import Shape
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from malmoi.configs.model import ModelSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import Precision, TrainSettings
from malmoi.train.models import MODELS, SpecialTokenIds, cross_entropy
from malmoi.train.models.compute import configure_compute
from malmoi.train.models.cross_entropy import ChunkedLossSum, ChunkLoss, chunk_loss_in_place, fastest_chunk_loss
from malmoi.train.models.gpt2 import TrainingGPT2, hidden_states
from malmoi.train.models.spec import IGNORE_INDEX, padded_vocabulary
from malmoi.train.pretrain_run import initial_model

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CHUNKS = {"cuda": (2**25, 2**26, 2**27, 2**28), "cpu": (2**20, 2**22, 2**24)}
"""Logits of a chunk."""
TORCH_ATTENTION = "torch's attention in 16 bits"


@dataclass(frozen=True)
class Timed:
    """One form of a part."""

    form: str
    milliseconds: float


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    shape: dict[str, int]
    device: str
    name: str
    precision: str
    attention: list[Timed]
    loss: list[Timed]
    model: list[Timed]


def timed(forms: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> list[Timed]:
    """Have all forms take turns."""
    ways = {form: partial(seconds_of, work, device.type) for form, work in forms.items()}
    seconds = in_turns(ways, repeats, warm_up=2)
    return [Timed(form, round(1e3 * median(taken, 9), 3)) for form, taken in seconds.items()]


def attention_forms(shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int) -> Iterator[Timed]:
    size = (shape.batch, shape.block, shape.heads, shape.width // shape.heads)
    joint = torch.randn(shape.batch, shape.block, 3 * shape.width, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(size, device=device, dtype=dtype).transpose(1, 2)

    def both_ways() -> None:
        query, key, value = (part.view(size).transpose(1, 2) for part in joint.split(shape.width, 2))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(mixed, joint, gradient)

    named = {"as torch chooses": None, **(KERNELS if device.type == "cuda" else {})}
    for name, kernel in named.items():
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            yield from timed({name: both_ways}, device, repeats)
    if device.type == "cpu" and dtype != torch.float32:
        joint, gradient = joint.detach().float().requires_grad_(), gradient.float()
        yield from timed({"in fp32": both_ways}, device, repeats)


def attention_of_lengths(shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int) -> Iterator[Timed]:
    """Yield, on a processor, also samples eight times as long, as many tokens in all."""
    yield from attention_forms(shape, device, dtype, repeats)
    if device.type == "cpu":
        longer = replace(shape, block=8 * shape.block, batch=max(1, shape.batch // 8))
        for each in attention_forms(longer, device, dtype, repeats):
            yield replace(each, form=f"{each.form}, {longer.block:,} tokens")


def loss_as_formula(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Compute a `ChunkLoss` for `torch.compile` to make a kernel of that reads logits and writes gradients."""
    has_target = targets != IGNORE_INDEX
    columns = torch.arange(logits.shape[1], device=logits.device)
    logprobs = torch.log_softmax(logits.float().masked_fill(columns >= vocab_size, -torch.inf), 1)
    is_target = columns == targets
    loss_sum = -logprobs.where(is_target, 0).sum()
    return loss_sum, ((logprobs.exp() - is_target.float()) * has_target).to(logits.dtype)


def loss_forms(shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int) -> Iterator[Timed]:
    positions = shape.batch * shape.block
    hidden = torch.randn(positions, shape.width, device=device, requires_grad=True)
    matrix = (0.02 * torch.randn(padded_vocabulary(shape.vocab), shape.width, device=device)).requires_grad_()
    targets = torch.randint(0, shape.vocab, (positions,), device=device)

    def both_ways(form: ChunkLoss) -> None:
        loss_sum = ChunkedLossSum.apply(hidden, matrix, targets, shape.vocab, dtype, True, form)
        torch.autograd.grad(loss_sum, (hidden, matrix))

    forms: dict[str, ChunkLoss] = {"in place": chunk_loss_in_place, "compiled": torch.compile(loss_as_formula)}
    if device.type == "cuda":
        forms["a kernel"] = fastest_chunk_loss
    own_chunks = cross_entropy.chunk_positions
    for logits in CHUNKS[device.type]:
        cross_entropy.chunk_positions = lambda vocab, kind, most=logits: max(64, most // vocab // 64 * 64)
        for name, form in forms.items():
            yield from timed({f"{name}, {logits:,} logits a chunk": partial(both_ways, form)}, device, repeats)
    cross_entropy.chunk_positions = own_chunks
    if device.type == "cuda" and find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
        vectors = hidden.detach().to(dtype).requires_grad_()

        def its_way() -> None:
            torch.autograd.grad(liger(matrix.to(dtype), vectors, targets), (vectors, matrix))

        yield from timed({"Liger's": its_way}, device, repeats)


class CompiledWhole(nn.Module):
    """All but the loss as one graph."""

    def __init__(self, model: TrainingGPT2) -> None:
        super().__init__()
        self.model, self.hidden = model, torch.compile(hidden_states)

    def forward(self, input_ids: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        loss_sum: Tensor = self.model.lm_head(self.hidden(self.model.transformer, input_ids), targets, vocab_size)
        return loss_sum


def model_forms(shape: Shape, device: torch.device, precision: Precision, repeats: int) -> list[Timed]:
    spec = MODELS["gpt2"]
    ids = torch.randint(0, shape.vocab, (shape.batch, shape.block), device=device)

    def new_model(is_compiled: bool = False) -> TrainingGPT2:
        settings = RunSettings(model=ModelSettings(**shape.model), train=TrainSettings(seed=1, compile=is_compiled))
        model = initial_model(settings, spec, shape.vocab, SpecialTokenIds(0, 1, 2, 3)).to(device)
        configure_compute(model, spec.blocks(model), settings.train, precision, document_mask=False)
        return model

    def both_ways(model: nn.Module) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss_sum = model(ids, ids, shape.vocab)
        loss_sum.backward()
        model.zero_grad(set_to_none=True)

    models: dict[str, nn.Module] = {"as it is": new_model()}
    if device.type == "cpu" and precision != "fp32":  # elsewhere the same as it is
        models[TORCH_ATTENTION] = new_model()
        models[TORCH_ATTENTION].set_attn_implementation("sdpa")
    models |= {"blocks compiled": new_model(is_compiled=True), "compiled as a whole": CompiledWhole(new_model())}
    return timed({form: partial(both_ways, model) for form, model in models.items()}, device, repeats)


def main() -> None:
    options = parse_options(new_parser(__doc__, "14M", has_device=True, repeats=10))
    shape, device, repeats = options.shape, torch.device(options.device), options.repeats
    torch.backends.cuda.matmul.allow_tf32 = True
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    print_figures(
        Figures(
            asdict(shape),
            options.device,
            torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            options.precision,
            list(attention_of_lengths(shape, device, dtype, repeats)),
            list(loss_forms(shape, device, dtype, repeats)),
            model_forms(shape, device, options.precision, repeats),
        )
    )


if __name__ == "__main__":
    main()
