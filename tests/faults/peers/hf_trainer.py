"""`transformers`' Trainer as its users resume it: a checkpoint every five steps, the newest of which it resumes."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

BLOCK, BATCH, STEPS, SAVE_EVERY, VOCABULARY = 32, 8, 20, 5, 2000


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of a file of uint16 tokens, as labels of themselves."""

    def __init__(self, tokens: Path) -> None:
        self.tokens = np.memmap(tokens, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return len(self.tokens) // BLOCK

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.tokens[number * BLOCK : (number + 1) * BLOCK].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def train(tokens: Path, out: Path) -> int:
    """Train from scratch, or from the newest checkpoint in `out`, and save the model in `out/model`."""
    set_seed(42)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=32, n_layer=2, n_head=2)
    arguments = TrainingArguments(
        str(out),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        save_steps=SAVE_EVERY,
        save_total_limit=3,
        logging_steps=1,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Blocks(tokens))
    trainer.train(resume_from_checkpoint=any(out.glob("checkpoint-*")) or None)
    trainer.save_model(str(out / "model"))
    return 0
