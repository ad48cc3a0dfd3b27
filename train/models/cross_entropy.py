"""The loss of the next token from the last hidden states, a chunk of positions at a time.

The logits of a whole micro-batch are its largest tensor: 1.6 GB in fp32 for 8,192 positions and 50,257 tokens, which a
plain loss holds several times over. Here the logits of one chunk are made, turned into the chunk's gradient at once,
and freed, as in Hsu et al., "Liger Kernel" (2024), section 3.2. `plain_loss_sum` is the plain twin.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from malmoi.train.models.compute import missing_compiler
from malmoi.train.models.spec import IGNORE_INDEX, padded_vocabulary

PRODUCT_ELEMENTS = 2**20
"""Elements of a 16-bit product that a CPU computes at once."""
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Logits of a chunk: few enough for a CPU's cache, enough to keep a GPU busy."""
MIN_CHUNK_POSITIONS = 256
"""Of a chunk: the gradient of the whole output matrix is read and written once a chunk."""
TILE = 64
"""Positions of a chunk are a multiple of it: matrix units multiply whole tiles."""
ChunkLoss = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From logits `[positions, padded vocabulary]`, targets `int64[positions, 1]` and the vocabulary's size: the loss sum,
in nats, and its gradient in the logits, in the logits' dtype."""


def chunk_positions(vocab_size: int, device_type: str) -> int:
    """Most positions of a chunk."""
    most = CHUNK_ELEMENTS["cpu" if device_type == "cpu" else "cuda"] // vocab_size
    return max(MIN_CHUNK_POSITIONS, most // TILE * TILE)


def loss_bytes(positions: int, width: int, vocab_size: int, half: bool, device_type: str) -> int:
    """Return the bytes that the loss of a micro-batch takes on one device.

    They are the gradients of the output matrix and of its input, and a chunk's logits: in their own precision, and on a
    CPU also in fp32 and as a gradient.

    Args:
        positions: of the micro-batch, each a vector of `width` channels.
        vocab_size: without padding.
        half: whether it computes in 16 bits.
    """
    low = 2 if half else 4
    chunk = min(positions, chunk_positions(vocab_size, device_type)) * vocab_size
    logits = (low + (8 if device_type == "cpu" else 0)) * chunk
    return logits + 4 * width * padded_vocabulary(vocab_size) + low * positions * width


def plain_loss_sum(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Sum of `-log p(target)` over all positions with a target, in nats, as an fp32 scalar.

    Args:
        logits: `[batch, positions, padded vocabulary]`, any float dtype.
        targets: `int64[batch, positions]`, each below `vocab_size`, or `IGNORE_INDEX`.
        vocab_size: logits from this one on are padding and get no probability.
    """
    flat = logits[..., :vocab_size].float().flatten(0, 1)
    return functional.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=IGNORE_INDEX)


def chunk_loss_in_place(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Compute a `ChunkLoss` in few tensors: fp32 logits are overwritten by their gradient."""
    has_target = targets != IGNORE_INDEX
    target_ids = targets.where(has_target, 0)
    logits[:, vocab_size:] = -torch.inf
    wide = logits.float()
    logprobs = torch.log_softmax(wide, 1, out=wide)
    loss_sum = -logprobs.gather(1, target_ids).where(has_target, 0).sum()
    # d loss / d logits is the probability, less one at the target.
    gradient = logprobs.exp_().scatter_add_(1, target_ids, logprobs.new_full(target_ids.shape, -1.0))
    return loss_sum, gradient.mul_(has_target).to(logits.dtype)


def fastest_chunk_loss(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The `ChunkLoss` that is fastest where `logits` are; on a GPU it needs a compiler."""
    if not logits.is_cuda:
        return chunk_loss_in_place(logits, targets, vocab_size)
    # Triton comes with torch where that is made for a GPU, and not elsewhere.
    from malmoi.train.models.triton_cross_entropy import triton_chunk_loss

    return triton_chunk_loss(logits, targets, vocab_size)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to an fp32 `total`; of 16 bits, a GPU keeps the sums in fp32.

    A CPU rounds the product to 16 bits and makes fp32 of it to add it: a few rows at a time, which stay in its
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


class ChunkedLossSum(torch.autograd.Function):
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
        chunk_loss: ChunkLoss,
    ) -> Tensor:
        """The loss sum of `int64[positions]` targets after `[positions, n_embd]` vectors, multiplied in `dtype`.

        Args:
            weight: `[padded vocabulary, n_embd]`. Padding is multiplied too, since GPUs want whole tiles.
            backward: whether gradients will be asked for.
        """
        rows = equal_chunk(len(hidden), chunk_positions(vocab_size, hidden.device.type))
        matrix = weight.to(dtype)
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        if backward:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part in range(0, len(hidden), rows):
            vectors = hidden[part : part + rows].to(dtype)
            chunk_sum, grad_logits = chunk_loss(vectors @ matrix.T, targets[part : part + rows, None], vocab_size)
            loss_sum += chunk_sum
            if backward:
                grad_hidden[part : part + rows] = grad_logits @ matrix
                add_product(grad_weight, grad_logits.T, vectors)
        if backward:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, grad_loss_sum: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_loss_sum.to(grad_hidden.dtype),
            grad_weight.mul_(grad_loss_sum),
            None,
            None,
            None,
            None,
            None,
        )


def equal_chunk(positions: int, most: int) -> int:
    """Positions of each chunk, but the last: all alike where that takes no more than twice the chunks, since each other
    size is compiled anew."""
    return next((size for size in range(most, most // 2, -1) if positions % size == 0), most)


class OutputMatrix(nn.Linear):
    """GPT-2's `lm_head`: logits of hidden states, or the loss sum of the targets that come after them."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.chunk_loss: ChunkLoss = chunk_loss_in_place if missing_compiler() else fastest_chunk_loss

    def forward(self, hidden: Tensor, targets: Tensor | None = None, vocab_size: int | None = None) -> Tensor:
        """Logits `[..., padded vocabulary]`; or, given targets, their loss sum as an fp32 scalar.

        Args:
            hidden: `[..., n_embd]`.
            targets: `int64[...]`, each below `vocab_size`, or `IGNORE_INDEX`.
            vocab_size: rows from this one on are padding and take no probability.
        """
        if targets is None:
            return super().forward(hidden)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        backward = torch.is_grad_enabled() and (hidden.requires_grad or self.weight.requires_grad)
        with torch.autocast(device, enabled=False):
            loss_sum: Tensor = ChunkedLossSum.apply(  # type: ignore[no-untyped-call]  # torch's apply is untyped
                hidden.flatten(0, -2),
                self.weight,
                targets.flatten(),
                vocab_size or len(self.weight),
                dtype,
                backward,
                self.chunk_loss,
            )
        return loss_sum
