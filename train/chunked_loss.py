"""The loss of the next token from the last context vectors, a chunk of positions at a time.

The logits of a whole micro-batch are its largest tensor: 1.6 GB in fp32 for 8,192 positions and 50,257 tokens, which a
plain loss holds several times over. Here those of one chunk are made, turned into the chunk's gradient at once, and
forgotten, as in Hsu et al., "Liger Kernel" (2024), section 3.2. `train.objective.next_token_nats` is the plain twin.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from train.compiler import missing_compiler
from train.documents import NOT_COUNTED
from train.memory import loss_positions

PRODUCT_ELEMENTS = 2**20
"""Of a product of 16 bits that a processor holds at once."""
LossOfChunk = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From logits `[positions, padded vocabulary]`, targets `int64[positions, 1]` and the vocabulary's size: summed nats,
and their gradient in the logits, in the logits' type."""


def loss_in_place(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """`LossOfChunk` in as few tensors as can be: fp32 logits are overwritten by their gradient."""
    counted = targets != NOT_COUNTED
    answers = targets.where(counted, 0)
    logits[:, vocab_size:] = -torch.inf
    wide = logits.float()
    logprobs = torch.log_softmax(wide, 1, out=wide)
    nats = -logprobs.gather(1, answers).where(counted, 0).sum()
    # d nats / d logits is the probability, less one at the answer.
    gradient = logprobs.exp_().scatter_add_(1, answers, logprobs.new_full(answers.shape, -1.0))
    return nats, gradient.mul_(counted).to(logits.dtype)


def loss_of_device(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The `LossOfChunk` that is fastest where `logits` are; on a GPU it needs a compiler."""
    if not logits.is_cuda:
        return loss_in_place(logits, targets, vocab_size)
    # Triton comes with torch where that is made for a GPU, and not elsewhere.
    from train.loss_kernel import loss_in_kernel

    return loss_in_kernel(logits, targets, vocab_size)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to an fp32 `total`; of 16 bits, a GPU keeps the sums in fp32.

    A processor rounds the product to 16 bits and makes fp32 of it to add it: a few rows at a time, which stay in its
    cache.
    """
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, left, right, torch.float32, out=total)
    else:
        rows = max(1, PRODUCT_ELEMENTS // total.shape[1])
        for part in range(0, len(total), rows):
            total[part : part + rows] += left[part : part + rows] @ right


class ChunkedNats(torch.autograd.Function):
    """Summed `-log p(target)`, and its gradients, which are computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        backward: bool,
        loss_of_chunk: LossOfChunk,
    ) -> Tensor:
        """The nats of `int64[positions]` targets after `[positions, n_embd]` vectors, multiplied in `dtype`.

        Args:
            weight: `[padded vocabulary, n_embd]`. Padding is multiplied too, since GPUs want whole tiles.
            backward: whether gradients will be asked for.
        """
        rows = chunk_of(len(hidden), loss_positions(vocab_size, hidden.device.type))
        matrix = weight.to(dtype)
        nats = torch.zeros((), dtype=torch.float32, device=hidden.device)
        if backward:
            of_hidden = torch.empty_like(hidden)
            of_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part in range(0, len(hidden), rows):
            vectors = hidden[part : part + rows].to(dtype)
            of_chunk, of_logits = loss_of_chunk(vectors @ matrix.T, targets[part : part + rows, None], vocab_size)
            nats += of_chunk
            if backward:
                of_hidden[part : part + rows] = of_logits @ matrix
                add_product(of_weight, of_logits.T, vectors)
        if backward:
            ctx.save_for_backward(of_hidden, of_weight)
        return nats

    @staticmethod
    def backward(ctx: Any, of_nats: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * of_nats.to(of_hidden.dtype), of_weight.mul_(of_nats), None, None, None, None, None


def chunk_of(positions: int, most: int) -> int:
    """Positions of each chunk, but the last: all alike where that takes no more than twice the chunks, since each other
    size is compiled anew."""
    return next((size for size in range(most, most // 2, -1) if positions % size == 0), most)


class OutputMatrix(nn.Linear):
    """GPT-2's `lm_head`: logits of context vectors, or the nats of the targets that come after them."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.loss_of_chunk: LossOfChunk = loss_in_place if missing_compiler() else loss_of_device

    def forward(self, hidden: Tensor, targets: Tensor | None = None, vocab_size: int | None = None) -> Tensor:
        """Logits `[..., padded vocabulary]`; or, given targets, their summed nats as an fp32 scalar.

        Args:
            hidden: `[..., n_embd]`.
            targets: `int64[...]`, each below `vocab_size`, or `NOT_COUNTED`.
            vocab_size: rows from this one on are padding and take no probability.
        """
        if targets is None:
            return super().forward(hidden)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        backward = torch.is_grad_enabled() and (hidden.requires_grad or self.weight.requires_grad)
        with torch.autocast(device, enabled=False):
            nats: Tensor = ChunkedNats.apply(  # type: ignore[no-untyped-call]  # torch's apply is untyped
                hidden.flatten(0, -2),
                self.weight,
                targets.flatten(),
                vocab_size or len(self.weight),
                dtype,
                backward,
                self.loss_of_chunk,
            )
        return nats
