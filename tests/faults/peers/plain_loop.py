"""A plain loop that saves and resumes as nanoGPT's train.py does: random blocks of a memory map, one `ckpt.pt` that
`torch.save` overwrites, and a flag for resuming, which is given here where the file is there."""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

BLOCK, BATCH, STEPS, SAVE_EVERY, VOCABULARY = 32, 8, 20, 5, 2000


def train(tokens: Path, out: Path, steps: int = STEPS) -> int:
    """Train from scratch, or from `out/ckpt.pt`, and leave the last step's weights there."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1337)
    data = np.memmap(tokens, dtype=np.uint16, mode="r")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=32, n_layer=2, n_head=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step, saved = 0, out / "ckpt.pt"
    if saved.exists():
        checkpoint = torch.load(saved, map_location="cpu")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        step = checkpoint["iter_num"]
    while step < steps:
        starts = torch.randint(len(data) - BLOCK, (BATCH,)).tolist()
        batch = torch.stack([torch.from_numpy(data[each : each + BLOCK].astype(np.int64)) for each in starts])
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        print(f"iter {step}: loss {loss.item():.4f}")
        if step % SAVE_EVERY == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": step}, saved)
    return 0
