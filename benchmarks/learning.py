"""How many tokens a recipe needs: held-out bits per byte of Malmoi's against the tutorial's and nanoGPT's.

    python benchmarks/learning.py [--quick] [--only compare|ablations] [--out benchmarks/results/learning.jsonl]

All train GPT-2 on the same shards of the demo's text, from the same seeds, and are scored on the same held-out part:

- tutorial: HF's Trainer with its defaults (AdamW at 5e-5, linear decay, clip 1), batch 64, block 128, dropout 0.1;
- nanogpt: AdamW with betas 0.9 and 0.95, decay 0.1, warm-up, cosine to a tenth, clip 1, no dropout, the best of RATES;
- malmoi: Muon at the demo's rate in batches of 8, on a third of nanogpt's tokens and on a tenth of the tutorial's.

`ablations` changes one thing of Malmoi's recipe at a time, on the first of --sizes at a third of its tokens. A finished
run is one line of --out, so a benchmark that was stopped goes on; `--share 0/2` and `--share 1/2` deal the runs out to
two processes, which are started again once both have ended, since some runs wait for others' results. A run is known by
its recipe's name, size, seed, tokens and rate: a recipe that was changed wants another --out. Prints medians over seeds
with their spread and, as the last line, one JSON object.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.learning_recipes import (
    ABLATIONS,
    BASE,
    MALMOI,
    NANOGPT,
    RATES,
    SIZES,
    SWEEP_SEED,
    TUTORIAL,
    Recipe,
    Size,
    changed,
)
from configs.schema import CorpusSettings, DataSettings, ModelSettings, RunSettings, TokenizerSettings
from data_prep.manifest import read_manifest
from inference.score import Windows, nats_of_windows, score_of
from train.blocks import open_held_out, open_samples
from train.documents import Batch, in_quarters
from train.kernels import configured
from train.model import TrainedGPT2, new_model
from train.objective import batch_nats, next_token_nats
from train.optim import learning_rate, new_optimizer, set_learning_rate
from train.parameter_tensors import clip_and_step
from train.run_folder import PreparedRun, prepare_run
from train.session import document_tokens, run_tokenizer, special_token_ids
from train.transfer import on_device

BLOCK = 128
MICRO_BATCH = 8
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Run:
    """One training, and what came of it."""

    recipe: str
    size: str
    seed: int
    tokens: int
    rate: float
    bits_per_byte: float = math.nan
    seconds: float = math.nan
    steps: int = 0

    @property
    def key(self) -> tuple[str, str, int, int, float]:
        return self.recipe, self.size, self.seed, self.tokens, self.rate


@dataclass
class Bench:
    """Prepared shards by vocabulary, finished runs, and where they go."""

    work: Path
    out: Path
    share: tuple[int, int]
    device: torch.device
    prepared: dict[int, PreparedRun] = field(default_factory=dict)

    def finished(self) -> dict[tuple[str, str, int, int, float], Run]:
        if not self.out.is_file():
            return {}
        runs = [Run(**json.loads(line)) for line in self.out.read_text().splitlines()]
        return {run.key: run for run in runs}

    def run(self, recipe: Recipe, size: Size, seed: int, tokens: int) -> Run | None:
        """The run, made now if it is this process's share; none if it is another's and not there yet."""
        wanted = Run(recipe.name, size.name, seed, tokens, recipe.train.learning_rate)
        done = self.finished().get(wanted.key)
        if done is not None:
            return done
        if zlib.crc32(repr(wanted.key).encode()) % self.share[1] != self.share[0]:
            return None
        began = time.perf_counter()
        bits, steps = trained(recipe, size, seed, tokens, self.shards(recipe.vocab_size), self.device)
        made = replace(wanted, bits_per_byte=bits, seconds=round(time.perf_counter() - began, 1), steps=steps)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a") as file:
            file.write(json.dumps(asdict(made)) + "\n")
        print(
            f"{made.recipe:36} {made.size} seed {seed:2} {tokens:9,} tokens  {bits:.4f}  {made.seconds:.0f} s",
            flush=True,
        )
        return made

    def shards(self, vocab_size: int) -> PreparedRun:
        if vocab_size not in self.prepared:
            settings = RunSettings(
                run=str(self.work / f"shards-{vocab_size}"),
                corpus=CorpusSettings(input=("package:data_prep/demo_text",)),
                tokenizer=TokenizerSettings(vocab_size=vocab_size),
                data=DataSettings(held_out=0.03),
            )
            self.prepared[vocab_size] = prepare_run(settings)
        return self.prepared[vocab_size]


def trained(
    recipe: Recipe, size: Size, seed: int, tokens: int, prepared: PreparedRun, device: torch.device
) -> tuple[float, int]:
    """Held-out bits per byte of `recipe` after `tokens`, and its updates."""
    special = special_token_ids(prepared.tokenizer, run_tokenizer(prepared.tokenizer))
    vocab_size = read_manifest(prepared.sources[0].folder).vocab_size
    shape = ModelSettings(size.layers, size.heads, size.width, BLOCK, recipe.dropout)
    model = configured(
        new_model(shape, vocab_size, special, seed), recipe.train, "fp32", document_mask=recipe.document_mask
    )
    draw_anew(model.to(device), recipe)
    apart = document_tokens(DataSettings(document_mask=recipe.document_mask), special)
    samples = open_samples(prepared.sources, BLOCK, seed, apart)
    if recipe.hf_trainer:
        steps = train_by_hf(model, recipe, seed, tokens, lambda number: samples.read(number, 1).inputs[0])
    else:
        steps = train_plainly(model, recipe, seed, tokens, samples.read, vocab_size)
    return held_out_bits(model, prepared, vocab_size), steps


def train_plainly(
    model: TrainedGPT2, recipe: Recipe, seed: int, tokens: int, read: Callable[[int, int], Batch], vocab_size: int
) -> int:
    """Malmoi's update with what the recipe adds to it; returns the updates."""
    settings = recipe.train
    optimizer = new_optimizer(model, settings, model.device)
    embeddings = {model.transformer.wte.weight, model.transformer.wpe.weight}
    batches = list(batch_sizes(recipe, tokens))
    average: dict[str, Tensor] = {}
    averaged = sample = 0
    for group in optimizer.param_groups:
        if "parts" in group and not recipe.split_attention:
            group["parts"] = 1
    torch.manual_seed(seed)
    for number, batch in enumerate(batches):
        rate = learning_rate(number, len(batches), settings)
        set_learning_rate(optimizer, rate)
        for group in optimizer.param_groups:
            if recipe.embedding_rate is not None and embeddings.issuperset(group["params"]):
                group["lr"] = rate * recipe.embedding_rate
        short = sample * BLOCK < recipe.short_blocks_until * tokens
        micro = min(MICRO_BATCH, batch)
        for _ in range(batch // micro):
            read_batch = read(sample, micro)
            sample += micro
            loss_of(model, read_batch, recipe, vocab_size, short).div(batch * BLOCK).backward()
        clip_and_step(model, optimizer, settings.clip_norm, None)
        if number >= recipe.average_from * len(batches):
            averaged += 1
            for name, value in model.state_dict().items():
                average[name] = value.clone() if averaged == 1 else average[name].lerp(value, 1 / averaged)
    if average:
        model.load_state_dict(average)
    return len(batches)


def batch_sizes(recipe: Recipe, tokens: int) -> Iterator[int]:
    seen = 0
    while seen + recipe.train.global_batch * BLOCK <= tokens:
        small = seen < recipe.small_batches_until * tokens
        batch = recipe.train.global_batch // 2 if small else recipe.train.global_batch
        seen += batch * BLOCK
        yield batch


def loss_of(model: TrainedGPT2, batch: Batch, recipe: Recipe, vocab_size: int, short: bool) -> Tensor:
    if short:
        batch = in_quarters(batch)
    if not recipe.z_loss:
        return batch_nats(model, batch, vocab_size, model.device, "sdpa")
    logits = model(on_device(batch.inputs, model.device), use_cache=False).logits
    targets = on_device(batch.labels, model.device)
    partition = logits[..., :vocab_size].float().logsumexp(-1)
    return next_token_nats(logits, targets, vocab_size) + recipe.z_loss * partition.square().sum()


def draw_anew(model: TrainedGPT2, recipe: Recipe) -> None:
    with torch.no_grad():
        std = model.config.n_embd**-0.5 if recipe.embedding_std is None else recipe.embedding_std
        model.transformer.wte.weight.mul_(std / model.config.initializer_range)
        if recipe.zero_output_projections:
            for block in model.transformer.h:
                block.attn.c_proj.weight.zero_()
                block.mlp.c_proj.weight.zero_()


def train_by_hf(
    model: TrainedGPT2,
    recipe: Recipe,
    seed: int,
    tokens: int,
    read: Callable[[int], NDArray[np.int64]],
) -> int:
    """`transformers.Trainer` with its defaults, but for where it writes and what it reports; returns the updates."""
    import tempfile

    from transformers import GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator

    class Blocks(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return tokens // BLOCK

        def __getitem__(self, number: int) -> dict[str, Tensor]:
            ids = torch.as_tensor(read(number))
            return {"input_ids": ids, "labels": ids}

    theirs = GPT2LMHeadModel(model.config)
    theirs.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=recipe.train.global_batch,
            max_steps=tokens // (recipe.train.global_batch * BLOCK),
            save_strategy="no",
            report_to=[],
            seed=seed,
            use_cpu=model.device.type == "cpu",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(theirs, arguments, train_dataset=Blocks(), data_collator=default_data_collator)
        trainer.train()
    model.load_state_dict(theirs.state_dict())
    return int(trainer.state.global_step)


@torch.no_grad()
def held_out_bits(model: TrainedGPT2, prepared: PreparedRun, vocab_size: int) -> float:
    """Of the whole held-out part, in windows of one block."""
    held_out = open_held_out(prepared.sources)
    assert held_out is not None
    windows = Windows(len(held_out.stream), BLOCK, BLOCK)
    model.eval()
    nats = nats_of_windows(
        lambda ids: model(input_ids=ids, use_cache=False).logits,
        held_out.stream,
        windows,
        range(len(windows)),
        16,
        vocab_size,
        model.device,
    )
    return score_of(nats, len(held_out.stream), held_out.counts.bytes).bits_per_byte


@dataclass(frozen=True)
class Spread:
    """Over seeds."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.lowest:.3f} to {self.highest:.3f})"


def spread(runs: list[Run | None]) -> Spread | None:
    """None where a run is another process's and not there yet."""
    bits = [run.bits_per_byte for run in runs if run is not None]
    return Spread(statistics.median(bits), min(bits), max(bits)) if len(bits) == len(runs) else None


@dataclass(frozen=True)
class Comparison:
    """Of one size: bits per byte of each recipe, and what Malmoi's gain is."""

    size: str
    tokens: int
    nanogpt_rate: float
    nanogpt: Spread
    malmoi_on_a_third: Spread
    tutorial: Spread
    malmoi_on_a_tenth: Spread


def compare(bench: Bench, size: Size, seeds: tuple[int, ...]) -> Comparison | None:
    sweep = [
        bench.run(changed("nanogpt", NANOGPT, {"learning_rate": rate}), size, SWEEP_SEED, size.tokens) for rate in RATES
    ]
    if any(run is None for run in sweep):
        return None
    best = min((run for run in sweep if run is not None), key=lambda run: run.bits_per_byte).rate
    tuned = changed("nanogpt", NANOGPT, {"learning_rate": best})
    rows = [
        spread([bench.run(recipe, size, seed, tokens) for seed in seeds])
        for recipe, tokens in (
            (tuned, size.tokens),
            (MALMOI, size.tokens // 3),
            (TUTORIAL, size.tokens),
            (MALMOI, size.tokens // 10),
        )
    ]
    nanogpt, third, tutorial, tenth = rows
    if nanogpt is None or third is None or tutorial is None or tenth is None:
        return None
    return Comparison(size.name, size.tokens, best, nanogpt, third, tutorial, tenth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a thirtieth of the tokens, one seed: shows that it runs")
    parser.add_argument("--only", choices=("compare", "ablations"))
    parser.add_argument("--changes", nargs="+", help="ablations by their names; none: all")
    parser.add_argument("--sizes", nargs="+", choices=[size.name for size in SIZES], default=["S", "M"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="L wants a GPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "learning.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "learning")
    parser.add_argument("--share", default="0/1")
    options = parser.parse_args()
    number, of = map(int, options.share.split("/"))
    sizes, seeds = [size for size in SIZES if size.name in options.sizes], SEEDS
    if options.quick:
        sizes, seeds = [replace(size, tokens=size.tokens // 30) for size in sizes[:1]], SEEDS[:1]
        options.out = options.work / "quick.jsonl"
    bench = Bench(options.work, options.out, (number, of), torch.device(options.device))
    comparisons = [] if options.only == "ablations" else [compare(bench, size, seeds) for size in sizes]
    ablations: dict[str, Spread | None] = {}
    if options.only != "compare":
        changes = [recipe for recipe in ABLATIONS if recipe.name in (options.changes or [recipe.name])]
        for recipe in (BASE, *(changes[:2] if options.quick else changes)):
            runs = [bench.run(recipe, sizes[0], seed, sizes[0].tokens // 3) for seed in seeds]
            ablations[recipe.name] = spread(runs)
    for made in comparisons:
        if made is not None:
            print(f"{made.size}: nanogpt at {made.nanogpt_rate:g} on {made.tokens:,} tokens  {made.nanogpt}")
            print(f"{made.size}: malmoi on a third of them            {made.malmoi_on_a_third}")
            print(f"{made.size}: tutorial on {made.tokens:,} tokens   {made.tutorial}")
            print(f"{made.size}: malmoi on a tenth of them            {made.malmoi_on_a_tenth}")
    for name, seen in ablations.items():
        print(f"{name:40} {seen}")
    comparisons_made = [asdict(made) for made in comparisons if made is not None]
    print(
        json.dumps(
            {
                "comparisons": comparisons_made,
                "ablations": {name: asdict(seen) for name, seen in ablations.items() if seen is not None},
            }
        )
    )


if __name__ == "__main__":
    main()
