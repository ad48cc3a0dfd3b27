"""Tiny models of several architectures, random, with a tokenizer of bytes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

END = "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte; no token before a text, as GPT-2's own tokenizer puts none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: id for id, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """The folder of a model with `byte_tokenizer`."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def llama(folder: Path, positions: int = 2048) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=positions, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    return saved(LlamaForCausalLM(config), folder)


def gpt2(folder: Path, positions: int = 1024) -> Path:
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=2, n_positions=positions, bos_token_id=256, eos_token_id=256
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # further from uniform than GPT-2's initial weights, so that choices differ
    return saved(model, folder)


def bert(folder: Path) -> Path:
    config = BertConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return saved(BertForMaskedLM(config), folder)
