"""How fast text is generated: Malmoi against `transformers`' `generate` at its settings.

    python benchmarks/generation.py [--prompts 64 --new_tokens 128] [--layers 6 --width 384] [--quick]

A model with random weights writes after `--prompts` prompts at once, greedily and by sampling among 50. Ways:
`transformers` with its default cache, with its static one, and Malmoi (`inference.generate`, the texts decoded). They
take turns within a round, each round begins with another. All write the same tokens, or it is said which do not.
Prints medians and, as the last line, one JSON object; a ratio is transformers' better time over Malmoi's, round by
round.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from configs.schema import SamplingSettings
from inference.generate import Batching, generate
from inference.model_folder import LoadedModel, load_model

PAD, END = 0, 1
PROMPT_TOKENS = 8
SEED = 1


@dataclass(frozen=True)
class Figures:
    """One manner of choosing tokens: seconds as medians, Malmoi's speed against transformers' best setting."""

    sampling: bool
    default_seconds: float
    static_seconds: float
    malmoi_seconds: float
    ratio: float
    lowest: float
    highest: float
    rows_that_differ: int


def made_model(folder: Path, options: argparse.Namespace) -> None:
    """A model folder whose tokenizer has a token a word."""
    words = {"<pad>": PAD, "</s>": END} | {f"w{number}": number for number in range(2, options.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_layer": options.layers, "n_embd": options.width, "n_head": max(1, options.width // 64)}
    positions = PROMPT_TOKENS + options.new_tokens
    config = GPT2Config(
        vocab_size=options.vocab_size, n_positions=positions, bos_token_id=END, eos_token_id=END, **sizes
    )
    model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(
        bos_token_id=END, eos_token_id=END, pad_token_id=PAD, suppress_tokens=[PAD]
    )
    model.save_pretrained(folder)


def theirs(model: GPT2LMHeadModel, ids: torch.Tensor, sampling: bool, new_tokens: int, static: bool) -> list[list[int]]:
    """New tokens by `generate` itself."""
    cached = {"cache_implementation": "static", "disable_compile": True} if static else {}
    drawn = {"do_sample": True, "top_k": 50} if sampling else {"do_sample": False}
    set_seed(SEED)
    with torch.no_grad():
        rows = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, **drawn, **cached)
    return [[token for token in row if token not in (PAD, END)] for row in rows[:, ids.shape[1] :].tolist()]


def ours(loaded: LoadedModel, prompts: list[str], sampling: bool, new_tokens: int) -> list[list[int]]:
    """New tokens by Malmoi, read back from its texts."""
    settings = SamplingSettings(
        num_return_sequences=1, max_new_tokens=new_tokens, do_sample=sampling, top_k=50, seed=SEED
    )
    texts = [result.samples[0] for result in generate(loaded, prompts, settings, batching=Batching(len(prompts)))]
    return [loaded.tokenizer(text)["input_ids"][PROMPT_TOKENS:] for text in texts]


def compared(ways: dict[str, Callable[[], list[list[int]]]], sampling: bool, rounds: int) -> Figures:
    """Run all in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    written: dict[str, list[list[int]]] = {}
    names = list(ways)
    for number in range(rounds + 1):  # the first round warms up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            written[name] = ways[name]()
            if number:
                seconds[name].append(time.perf_counter() - began)
    differ = sum(one != other for one, other in zip(written["default"], written["malmoi"], strict=True))
    best = [min(both) for both in zip(seconds["default"], seconds["static"], strict=True)]
    ratios = [its / mine for its, mine in zip(best, seconds["malmoi"], strict=True)]
    medians = [round(statistics.median(seconds[name]), 3) for name in ("default", "static", "malmoi")]
    return Figures(
        sampling, *medians, round(statistics.median(ratios), 3), round(min(ratios), 3), round(max(ratios), 3), differ
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--vocab_size", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 new tokens, 2 layers of 128, one round")
    options = parser.parse_args()
    if options.quick:
        options.new_tokens, options.layers, options.width, options.rounds = 16, 2, 128, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_model(folder, options)
        loaded = load_model(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval().to(loaded.model.device)
        words = torch.randint(2, options.vocab_size, (options.prompts, PROMPT_TOKENS)).tolist()
        prompts = [" ".join(f"w{word}" for word in row) for row in words]
        ids = torch.tensor(words, device=model.device)
        figures = []
        for sampling in (False, True):
            ways = {
                "default": lambda drawn=sampling: theirs(model, ids, drawn, options.new_tokens, False),
                "static": lambda drawn=sampling: theirs(model, ids, drawn, options.new_tokens, True),
                "malmoi": lambda drawn=sampling: ours(loaded, prompts, drawn, options.new_tokens),
            }
            result = compared(ways, sampling, options.rounds)
            figures.append(result)
            print(
                f"{'sampling' if sampling else 'greedy':9s} default {result.default_seconds:.2f} s, static cache "
                f"{result.static_seconds:.2f} s, malmoi {result.malmoi_seconds:.2f} s: {result.ratio:.2f} times the "
                f"best of theirs ({result.lowest:.2f} to {result.highest:.2f}); "
                f"{result.rows_that_differ} of {options.prompts} rows differ",
                flush=True,
            )
    sizes = {"prompts": options.prompts, "new_tokens": options.new_tokens, "threads": torch.get_num_threads()}
    print(json.dumps({**sizes, "ways": [asdict(result) for result in figures]}))


if __name__ == "__main__":
    main()
