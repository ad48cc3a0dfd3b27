"""The loss of the next token from the last context vectors, a chunk of positions at a time.

The logits of a whole micro-batch are its largest tensor: 1.6 GB in fp32 for 8,192 positions and 50,257 tokens, which a
plain loss holds several times over. Here those of one chunk are made, turned into the chunk's gradient at once, and
forgotten, as in Hsu et al., "Liger Kernel" (2024), section 3.2. `train.objective.next_token_nats` is the plain twin.
"""

from typing import Any

import torch
from torch import Tensor, nn

from train.documents import NOT_COUNTED
from train.memory import loss_positions


class ChunkedNats(torch.autograd.Function):
    """Summed `-log p(target)`, and its gradients, which are computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, dtype: torch.dtype, backward: bool
    ) -> Tensor:
        """The nats of `int64[positions]` targets after `[positions, n_embd]` vectors, multiplied in `dtype`.

        Args:
            weight: `[padded vocabulary, n_embd]`.
            backward: whether gradients will be asked for.
        """
        rows = loss_positions(vocab_size, hidden.device.type)
        matrix = weight[:vocab_size].to(dtype)
        nats = torch.zeros((), dtype=torch.float32, device=hidden.device)
        if backward:
            of_hidden = torch.empty_like(hidden)
            of_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part in range(0, len(hidden), rows):
            vectors, answers = hidden[part : part + rows].to(dtype), targets[part : part + rows, None]
            counted = answers != NOT_COUNTED
            answers = answers.where(counted, 0)
            logits = (vectors @ matrix.T).float()
            logprobs = torch.log_softmax(logits, 1, out=logits)
            nats -= logprobs.gather(1, answers).where(counted, 0).sum()
            if not backward:
                continue
            # d nats / d logits is the probability, less one at the answer.
            of_logits = logprobs.exp_().scatter_add_(1, answers, logprobs.new_full(answers.shape, -1.0))
            of_logits = of_logits.mul_(counted).to(dtype)
            of_hidden[part : part + rows] = of_logits @ matrix
            if dtype == torch.float32:
                of_weight[:vocab_size].addmm_(of_logits.T, vectors)
            else:
                of_weight[:vocab_size] += of_logits.T @ vectors
        if backward:
            ctx.save_for_backward(of_hidden, of_weight)
        return nats

    @staticmethod
    def backward(ctx: Any, of_nats: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * of_nats.to(of_hidden.dtype), of_weight.mul_(of_nats), None, None, None, None


class OutputMatrix(nn.Linear):
    """GPT-2's `lm_head`: logits of context vectors, or the nats of the targets that come after them."""

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
                hidden.flatten(0, -2), self.weight, targets.flatten(), vocab_size or len(self.weight), dtype, backward
            )
        return nats
