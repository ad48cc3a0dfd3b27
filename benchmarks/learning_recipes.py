"""What benchmarks/learning.py trains: sizes, recipes, and the changes that are tried one at a time."""

from dataclasses import dataclass, replace
from typing import Any

from configs.schema import TrainSettings


@dataclass(frozen=True)
class Size:
    """A model, and the tokens that the recipes of others see."""

    name: str
    layers: int
    heads: int
    width: int
    tokens: int


SIZES = (Size("S", 2, 2, 64, 900_000), Size("M", 4, 4, 128, 450_000), Size("L", 6, 6, 384, 900_000))
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
"""Of nanogpt, each tried with one seed of its own."""
SWEEP_SEED = 11


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; what is not in `TrainSettings` is tried here alone."""

    name: str
    train: TrainSettings
    vocab_size: int = 4096
    dropout: float = 0.0
    document_mask: bool = False
    hf_trainer: bool = False
    embedding_rate: float | None = None
    """Learning rate of embeddings in rates of the matrices; none: as `train.optim` has it."""
    embedding_std: float | None = 0.02
    """Of the token embeddings' first values; none: 1 / sqrt(n_embd)."""
    zero_output_projections: bool = False
    z_loss: float = 0.0
    """Factor of the squared log-partition that is added to the loss."""
    small_batches_until: float = 0.0
    """Share of all tokens that is seen in batches of half the size."""
    short_blocks_until: float = 0.0
    """Share of all tokens that is seen in blocks of a quarter of the length."""
    average_from: float = 1.0
    """Share of all updates from which on the weights are averaged."""
    split_attention: bool = False
    """Muon orthogonalises query, key and value apart, as `train.optim` has it; else all three as one matrix."""


BASE = Recipe(
    "base",
    TrainSettings(
        global_batch=8,
        optimizer="muon",
        learning_rate=1e-2,
        schedule="linear",
        final_learning_rate=0.0,
        warmup_steps=20,
        weight_decay=0.0,
    ),
)
"""What the changes below are made to."""
NANOGPT = Recipe("nanogpt", TrainSettings(global_batch=16, learning_rate=2e-3, warmup_steps=40))
TUTORIAL = Recipe("tutorial", TrainSettings(global_batch=64, learning_rate=5e-5), dropout=0.1, hf_trainer=True)


def changed(name: str, recipe: Recipe = BASE, train: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    """`recipe` under another name, with other fields of its own or of its `TrainSettings`."""
    return replace(recipe, name=name, train=replace(recipe.train, **(train or {})), **fields)


ABLATIONS = (
    changed("AdamW at 1e-2", train={"optimizer": "adamw"}),
    changed("AdamW at 4e-3", train={"optimizer": "adamw", "learning_rate": 4e-3}),
    changed("query, key, value apart", split_attention=True),
    changed("embeddings at the matrices' rate", embedding_rate=1.0),
    changed("embeddings at 10 times the rate", embedding_rate=10.0),
    changed("output projections zero at first", zero_output_projections=True),
    changed("documents apart", document_mask=True),
    changed("constant rate, last fifth averaged", train={"schedule": "constant"}, average_from=0.8),
    changed("no warm-up", train={"warmup_steps": 0}),
    changed("batch 16", train={"global_batch": 16}),
    changed("vocabulary 8,192", vocab_size=8192),
    changed("vocabulary 3,072", vocab_size=3072),
    changed("cosine to a tenth", train={"schedule": "cosine", "final_learning_rate": 0.1}),
    changed("z-loss 1e-4", z_loss=1e-4),
    changed("blocks of 32 at first", short_blocks_until=0.3),
    changed("batch 16, half at first", train={"global_batch": 16}, small_batches_until=0.3),
    changed("embeddings drawn at 0.1", embedding_std=0.1),
    changed("embeddings drawn at 1/sqrt(width)", embedding_std=None),
    changed("wsd, the last third falling", train={"schedule": "wsd", "decay_share": 0.33}),
    changed("rate 2e-2", train={"learning_rate": 2e-2}),
    changed("rate 5e-3", train={"learning_rate": 5e-3}),
)
MALMOI = changed("malmoi", split_attention=True, short_blocks_until=0.3)
"""With what helped on every size."""
