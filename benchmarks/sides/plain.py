"""A short GPT and its loop in plain torch, in nanoGPT's manner: its blocks, its batches, its optimizer.

Our own code: pre-norm blocks, fused attention, `cross_entropy` over all logits, samples at random places of a memory
map, AdamW (fused) with decay for matrices, gradients clipped at 1, autocast for 16 bits, `torch.compile` of the model,
and DDP with its defaults where there are several ranks.
"""

import os

import numpy as np
import torch
from sides.turns import Turns, Work, read_work
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel


class Attention(nn.Module):
    """Causal self-attention of all heads at once."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.heads = work.heads
        self.in_projection = nn.Linear(work.width, 3 * work.width)
        self.out_projection = nn.Linear(work.width, work.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.in_projection(x).split(width, dim=2))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_projection(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a feed-forward network, each on a normalized copy of the stream."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(work.width), Attention(work)
        self.norm_2 = nn.LayerNorm(work.width)
        self.up, self.down = nn.Linear(work.width, 4 * work.width), nn.Linear(4 * work.width, work.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """Token and position embeddings, blocks, a norm, and the token embedding again."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        rows = -(-work.vocab // 64) * 64  # padded, as nanoGPT and Malmoi do
        self.tokens, self.positions = nn.Embedding(rows, work.width), nn.Embedding(work.block, work.width)
        self.blocks = nn.ModuleList(Block(work) for _ in range(work.layers))
        self.norm = nn.LayerNorm(work.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                is_residual = name.endswith(("out_projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * work.layers) ** 0.5 if is_residual else 0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Loop:
    """The model, its optimizer and its data."""

    def __init__(self, work: Work) -> None:
        torch.manual_seed(1337)
        self.work = work
        self.tokens = np.memmap(work.tokens, dtype=np.uint16, mode="r")
        if work.device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
        self.bare = GPT(work).to(work.device)
        matrices = [parameter for parameter in self.bare.parameters() if parameter.dim() >= 2]
        rest = [parameter for parameter in self.bare.parameters() if parameter.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
        self.model: nn.Module = self.bare
        if "WORLD_SIZE" in os.environ:
            distributed.init_process_group("gloo")
            self.model = DistributedDataParallel(self.bare)
        if work.compile:
            self.model = torch.compile(self.model)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Read inputs and targets at random places."""
        work = self.work
        places = torch.randint(len(self.tokens) - work.block - 1, (work.batch,)).tolist()
        read = torch.from_numpy(np.stack([self.tokens[at : at + work.block + 1].astype(np.int64) for at in places]))
        if work.device == "cuda":
            read = read.pin_memory().to("cuda", non_blocking=True)
        return read[:, :-1], read[:, 1:]

    def step(self) -> None:
        """Do one optimizer step."""
        inputs, targets = self.batch()
        with torch.autocast(self.work.device, dtype=torch.bfloat16, enabled=self.work.precision == "bf16"):
            loss: Tensor = self.model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.bare.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    work = read_work()
    turns = Turns(work.device)
    loop = Loop(work)
    turns.begin()
    while True:
        loop.step()
        turns.step()


if __name__ == "__main__":
    main()
