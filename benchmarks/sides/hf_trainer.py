"""`transformers`' Trainer on the same model and tokens, as a user calls it; stopped between steps by a callback.

The steps are those of one `Trainer.train()` with all that it does around them: its data loader, its schedule, its
clipping, its bar. With defaults that is fp32; `Work.precision` and `Work.compile` turn on `bf16` and `torch_compile`.
Beside a GPU two workers read ahead for it. Its model has no dropout, as everybody's here. No checkpoint is saved within
the steps.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides.turns import Turns, Work, read_work
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of a memory map, one after another, as labels of themselves."""

    def __init__(self, work: Work) -> None:
        self.tokens, self.block = np.memmap(work.tokens, dtype=np.uint16, mode="r"), work.block

    def __len__(self) -> int:
        return len(self.tokens) // self.block

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.tokens[number * self.block : (number + 1) * self.block].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


class TakesTurns(TrainerCallback):
    """Holds the Trainer between two steps until its next turn."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.step()


def main() -> None:
    work = read_work()
    turns = Turns(work.device)
    torch.manual_seed(1337)
    config = GPT2Config(
        vocab_size=work.vocab,
        n_positions=work.block,
        n_embd=work.width,
        n_layer=work.layers,
        n_head=work.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    arguments = TrainingArguments(
        str(Path(work.config).parent / "trainer"),
        per_device_train_batch_size=work.batch,
        max_steps=1_000_000,
        save_strategy="no",
        bf16=work.precision == "bf16",
        torch_compile=work.compile,
        dataloader_num_workers=2 if work.device == "cuda" else 0,
        use_cpu=work.device == "cpu",
    )
    Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Blocks(work), callbacks=[TakesTurns(turns)]).train()


if __name__ == "__main__":
    main()
