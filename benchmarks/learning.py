"""How many tokens a recipe needs: validation bits per byte of Malmoi's against the tutorial's and nanoGPT's.

    python benchmarks/learning.py [--quick] [--only compare|ablations] [--out benchmarks/results/learning.jsonl]

All train GPT-2 on the same shards of the demo's text, from the same seeds, and are scored on the same validation split:

- tutorial: HF's Trainer with its defaults (AdamW at 5e-5, linear decay, clip 1), batch 64, block 128, dropout 0.1;
- nanogpt: AdamW with betas 0.9 and 0.95, decay 0.1, warmup, cosine to a tenth, clip 1, no dropout, the best of RATES;
- malmoi: Muon at the demo's rate in batches of 8, on a third of nanogpt's tokens and on a tenth of the tutorial's.

`ablations` changes one thing of Malmoi's recipe at a time, on the first of --sizes at a third of its tokens. A finished
run is one line of --out, so a benchmark that was stopped continues; `--share 0/2` and `--share 1/2` deal the runs to
two processes, which are started again once both have ended, since some runs wait for others' results. A run is known by
its recipe's name, size, seed, tokens and rate: a recipe that was changed wants another --out. Prints bits per byte as
median, smallest and largest over seeds and, as the last line, one JSON object; benchmarks/tables.py compares them.
"""

import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from harness import DEMO_TEXT, ROOT, Spread, new_parser, parse_options, print_figures, spread
from learning_recipes import (
    ABLATIONS,
    BASE,
    MALMOI,
    NANOGPT,
    RATES,
    RUNS,
    SIZES,
    SWEEP_SEED,
    TUTORIAL,
    Recipe,
    Run,
    Size,
    changed,
    read_runs,
)
from tables import group_runs
from torch import Tensor
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator

import malmoi
from malmoi.configs.model import ModelSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.data_prep.shards.manifest import read_manifest
from malmoi.evaluation.perplexity import Windows, perplexity_result, sum_window_losses
from malmoi.train.backends.state_dict import clip_and_step
from malmoi.train.data.dataset import TokenDataset, open_dataset, open_validation
from malmoi.train.data.document_mask import Batch, cut_in_quarters
from malmoi.train.distributed.async_copy import to_device
from malmoi.train.models import MODELS
from malmoi.train.models.compute import configure_compute
from malmoi.train.models.cross_entropy import plain_loss_sum
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.optim import OPTIMIZERS
from malmoi.train.optim.lr_schedule import learning_rate, set_learning_rate
from malmoi.train.pretrain_run import document_tokens, initial_model, load_tokenizer, special_token_ids
from malmoi.train.run_dir import PreparedRun, prepare_run
from malmoi.train.tasks.language_modeling import batch_loss_sum

BLOCK = 128
MICRO_BATCH = 8
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Trained:
    """One recipe over seeds."""

    recipe: str
    size: str
    tokens: int
    rate: float
    bits_per_byte: Spread
    seeds: int


@dataclass(frozen=True)
class Figures:
    """What was measured, now or before."""

    trained: list[Trained]


@dataclass(frozen=True)
class Bench:
    """Where shards and finished runs are, and which of the runs are this process's."""

    work: Path
    out: Path
    share: tuple[int, int]
    device: torch.device

    def run(self, recipe: Recipe, size: Size, seed: int, tokens: int) -> Run | None:
        """Return the run, done now if it is this process's; None if it is another's and not there yet."""
        wanted = Run(recipe.name, size.name, seed, tokens, recipe.optim.lr)
        finished = read_runs(self.out).get(wanted.key)
        if finished is not None:
            return finished
        if zlib.crc32(repr(wanted.key).encode()) % self.share[1] != self.share[0]:
            return None
        began = time.perf_counter()
        bits, steps = trained(recipe, size, seed, tokens, self.shards(recipe.vocab_size), self.device)
        run = replace(wanted, bits_per_byte=bits, seconds=round(time.perf_counter() - began, 1), steps=steps)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        print(
            f"{run.recipe:36} {run.size} seed {seed:2} {tokens:9,} tokens  {bits:.4f}  {run.seconds:.0f} s", flush=True
        )
        return run

    def shards(self, vocab_size: int) -> PreparedRun:
        """Return the shards of a vocabulary, built unless they are there."""
        settings = malmoi.load_config(
            None,
            run=self.work / f"shards-{vocab_size}",
            corpus={"input": [str(DEMO_TEXT)]},
            tokenizer={"vocab_size": vocab_size},
            data={"val_fraction": 0.03},
        )
        return prepare_run(settings)


def trained(
    recipe: Recipe, size: Size, seed: int, tokens: int, prepared: PreparedRun, device: torch.device
) -> tuple[float, int]:
    """Return the validation bits per byte of `recipe` after `tokens`, and its steps."""
    special = special_token_ids(prepared.tokenizer, load_tokenizer(prepared.tokenizer))
    vocab_size, spec = read_manifest(prepared.sources[0].folder).vocab_size, MODELS["gpt2"]
    shape = ModelSettings("gpt2", size.layers, size.heads, size.width, BLOCK, recipe.dropout)
    settings = RunSettings(model=shape, train=TrainSettings(seed=seed))
    model = initial_model(settings, spec, vocab_size, special)
    configure_compute(model, spec.blocks(model), settings.train, "fp32", recipe.document_mask)
    redraw(model.to(device), recipe)
    documents = document_tokens(special) if recipe.document_mask else None
    dataset = open_dataset(prepared.sources, BLOCK, seed, documents)
    train = train_by_hf if recipe.hf_trainer else train_plainly
    steps = train(model, recipe, seed, tokens, dataset, vocab_size)
    return validation_bits(model, prepared, vocab_size), steps


def train_plainly(
    model: TrainingGPT2, recipe: Recipe, seed: int, tokens: int, dataset: TokenDataset, vocab_size: int
) -> int:
    """Train by Malmoi's optimizer step with what the recipe adds to it, and return the steps."""
    spec = OPTIMIZERS[recipe.optim.name]
    optimizer = spec.build(MODELS["gpt2"].param_groups(model), recipe.optim, model.device)
    embeddings = {model.transformer.wte.weight, model.transformer.wpe.weight}
    batches = list(batch_sizes(recipe, tokens))
    average: dict[str, Tensor] = {}
    averaged = sample = 0
    for group in optimizer.param_groups:
        if "num_matrices" in group and not recipe.split_attention:
            group["num_matrices"] = 1
    torch.manual_seed(seed)
    for number, batch in enumerate(batches):
        rate = learning_rate(number, len(batches), recipe.optim, recipe.schedule)
        set_learning_rate(optimizer, rate)
        for group in optimizer.param_groups:
            if recipe.embedding_rate is not None and embeddings.issuperset(group["params"]):
                group["lr"] = rate * recipe.embedding_rate
        short = sample * BLOCK < recipe.short_blocks_until * tokens
        micro = min(MICRO_BATCH, batch)
        for _ in range(batch // micro):
            read = dataset.read(sample, micro)
            sample += micro
            loss_sum(model, cut_in_quarters(read) if short else read, recipe, vocab_size).div(batch * BLOCK).backward()
        clip_and_step(model, optimizer, recipe.optim.max_grad_norm, None)
        if number >= recipe.average_from * len(batches):
            averaged += 1
            for name, value in model.state_dict().items():
                average[name] = value.clone() if averaged == 1 else average[name].lerp(value, 1 / averaged)
    if average:
        model.load_state_dict(average)
    return len(batches)


def batch_sizes(recipe: Recipe, tokens: int) -> Iterator[int]:
    seen = 0
    while seen + recipe.global_batch_size * BLOCK <= tokens:
        is_small = seen < recipe.small_batches_until * tokens
        batch = recipe.global_batch_size // 2 if is_small else recipe.global_batch_size
        seen += batch * BLOCK
        yield batch


def loss_sum(model: TrainingGPT2, batch: Batch, recipe: Recipe, vocab_size: int) -> Tensor:
    if not recipe.z_loss:
        return batch_loss_sum(model, batch, vocab_size, model.device, "sdpa")
    logits = model(to_device(batch.inputs, model.device), use_cache=False).logits
    partition = logits[..., :vocab_size].float().logsumexp(-1)
    losses = plain_loss_sum(logits, to_device(batch.targets, model.device), vocab_size)
    return losses + recipe.z_loss * partition.square().sum()


def redraw(model: TrainingGPT2, recipe: Recipe) -> None:
    """Give the weights the recipe's first values."""
    with torch.no_grad():
        std = model.config.n_embd**-0.5 if recipe.embedding_std is None else recipe.embedding_std
        model.transformer.wte.weight.mul_(std / model.config.initializer_range)
        if recipe.zero_output_projections:
            for block in model.transformer.h:
                block.attn.c_proj.weight.zero_()
                block.mlp.c_proj.weight.zero_()


def train_by_hf(
    model: TrainingGPT2, recipe: Recipe, seed: int, tokens: int, dataset: TokenDataset, vocab_size: int
) -> int:
    """Train by HF's Trainer with its defaults, but for where it writes and what it reports, and return the steps."""

    class Blocks(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return tokens // BLOCK

        def __getitem__(self, number: int) -> dict[str, Tensor]:
            ids = torch.as_tensor(dataset.read(number, 1).inputs[0])
            return {"input_ids": ids, "labels": ids}

    theirs = GPT2LMHeadModel(model.config)
    theirs.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=recipe.global_batch_size,
            max_steps=tokens // (recipe.global_batch_size * BLOCK),
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
def validation_bits(model: TrainingGPT2, prepared: PreparedRun, vocab_size: int) -> float:
    """Return the bits per byte over the full validation split, in windows of one block."""
    split = open_validation(prepared.sources)
    assert split is not None
    windows = Windows(len(split.stream), BLOCK, BLOCK)
    model.eval()
    logits_of: Callable[[Tensor], Tensor] = lambda ids: model(input_ids=ids, use_cache=False).logits  # noqa: E731 - a def would hide its type
    losses = sum_window_losses(logits_of, split.stream, windows, range(len(windows)), 16, vocab_size, model.device)
    return perplexity_result(losses, len(split.stream), split.counts.bytes).bits_per_byte


def compare(bench: Bench, size: Size, seeds: Sequence[int]) -> None:
    """Sweep nanogpt's learning rate, and run all recipes on a size, as far as other processes' runs are there."""
    rates = [changed("nanogpt", NANOGPT, optim={"lr": rate}) for rate in RATES]
    sweep = [run for recipe in rates if (run := bench.run(recipe, size, SWEEP_SEED, size.tokens)) is not None]
    if len(sweep) < len(RATES):
        return
    best = min(sweep, key=lambda run: run.bits_per_byte).rate
    recipes = (
        (changed("nanogpt", NANOGPT, optim={"lr": best}), size.tokens),
        (MALMOI, size.tokens // 3),
        (TUTORIAL, size.tokens),
        (MALMOI, size.tokens // 10),
    )
    for recipe, tokens in recipes:
        for seed in seeds:
            bench.run(recipe, size, seed, tokens)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--only", choices=("compare", "ablations"))
    parser.add_argument("--changes", nargs="+", help="ablations by their names; none: all")
    parser.add_argument("--sizes", nargs="+", choices=[size.name for size in SIZES], default=["S", "M"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="L wants a GPU")
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "learning")
    parser.add_argument("--share", default="0/1")
    parser.set_defaults(threads=1)
    options = parse_options(parser)
    number, of = map(int, options.share.split("/"))
    sizes, seeds = [size for size in SIZES if size.name in options.sizes], [*SEEDS]
    ablations = [recipe for recipe in ABLATIONS if recipe.name in (options.changes or [recipe.name])]
    if options.quick:
        sizes, seeds = [replace(size, tokens=size.tokens // 30) for size in sizes[:1]], seeds[:1]
        ablations, options.out = ablations[:2], options.work / "quick.jsonl"
    bench = Bench(options.work, options.out, (number, of), torch.device(options.device))
    for size in sizes if options.only != "ablations" else ():
        compare(bench, size, seeds)
    for recipe in (BASE, *ablations) if options.only != "compare" else ():
        for seed in seeds:
            bench.run(recipe, sizes[0], seed, sizes[0].tokens // 3)
    rows = []
    for group in group_runs(list(read_runs(options.out).values())):
        bits = [*group.bits.values()]
        rows.append(Trained(group.recipe, group.size, group.tokens, group.rate, spread(bits), len(bits)))
    print_figures(Figures(rows))


if __name__ == "__main__":
    main()
