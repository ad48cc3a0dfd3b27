"""How fast text is generated: Malmoi against `transformers`' `generate` at its settings.

    python benchmarks/generation.py [--prompts 64 --new_tokens 128] [--shape 14M] [--quick]

A model with random weights writes after `--prompts` prompts at once, greedily and by sampling among 50. Ways:
`transformers` with its default cache, with its static one, and `malmoi.generate`, its texts decoded. They take turns
within a round, each round begins with another. All write the same tokens, or it is said how many rows do not. Prints
medians and, as the last line, one JSON object; a ratio is transformers' better time over Malmoi's, round by round.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import in_turns, median, new_parser, parse_options, print_figures, ratios, seconds_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    set_seed,
)

import malmoi

PAD, END = 0, 1
PROMPT_TOKENS = 8
SEED = 1
CACHES = {"default": {}, "static": {"cache_implementation": "static", "disable_compile": True}}


@dataclass(frozen=True)
class Generation:
    """One manner of choosing tokens: seconds as medians, Malmoi's speed against transformers' best setting."""

    sampling: bool
    default_seconds: float
    static_seconds: float
    malmoi_seconds: float
    ratio: float
    lowest: float
    highest: float
    rows_that_differ: int


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    prompts: int
    new_tokens: int
    threads: int
    ways: list[Generation]


def save_model(folder: Path, options: argparse.Namespace) -> None:
    """Write a model folder whose tokenizer has a token a word."""
    words = {"<pad>": PAD, "</s>": END} | {f"w{number}": number for number in range(2, options.shape.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    special = {"bos_token_id": END, "eos_token_id": END}
    config = GPT2Config(
        vocab_size=options.shape.vocab,
        n_positions=PROMPT_TOKENS + options.new_tokens,
        n_layer=options.shape.layers,
        n_embd=options.shape.width,
        n_head=options.shape.heads,
        **special,
    )
    model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(pad_token_id=PAD, suppress_tokens=[PAD], **special)
    model.save_pretrained(folder)


def compare(folder: Path, options: argparse.Namespace, sampling: bool) -> Generation:
    """Have all ways write in turns."""
    loaded = malmoi.load_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().to(loaded.model.device)
    torch.manual_seed(0)
    ids = torch.randint(2, options.shape.vocab, (options.prompts, PROMPT_TOKENS), device=model.device)
    prompts = [" ".join(f"w{word}" for word in row) for row in ids.tolist()]
    choice = {"do_sample": sampling, **({"top_k": 50} if sampling else {})}
    written: dict[str, list[list[int]]] = {}

    def theirs(cache: str) -> None:
        set_seed(SEED)
        arguments = {"max_new_tokens": options.new_tokens, **choice, **CACHES[cache]}
        with torch.no_grad():
            rows = model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
        new = rows[:, PROMPT_TOKENS:].tolist()
        written[cache] = [[token for token in row if token not in (PAD, END)] for row in new]

    def ours() -> None:
        sampled = {"num_return_sequences": 1, "max_new_tokens": options.new_tokens, "seed": SEED, **choice}
        texts = [each.samples[0] for each in malmoi.generate(loaded, prompts, batch_size=len(prompts), **sampled)]
        written["malmoi"] = [loaded.tokenizer(text)["input_ids"][PROMPT_TOKENS:] for text in texts]

    ways = {
        "default": lambda: seconds_of(lambda: theirs("default")),
        "static": lambda: seconds_of(lambda: theirs("static")),
        "malmoi": lambda: seconds_of(ours),
    }
    seconds = in_turns(ways, options.rounds)
    differ = sum(one != other for one, other in zip(written["default"], written["malmoi"], strict=True))
    best = [min(both) for both in zip(seconds["default"], seconds["static"], strict=True)]
    return Generation(sampling, *map(median, seconds.values()), *ratios(best, seconds["malmoi"]), differ)


def main() -> None:
    parser = new_parser(__doc__, "14M", rounds=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=128)
    options = parse_options(parser)
    if options.quick:
        options.prompts, options.new_tokens = 8, 16
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options)
        figures = [compare(Path(folder), options, sampling) for sampling in (False, True)]
    print_figures(Figures(options.prompts, options.new_tokens, options.threads, figures))


if __name__ == "__main__":
    main()
