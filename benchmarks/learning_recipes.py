"""What benchmarks/learning.py trains: sizes, recipes, and changes that are tried one at a time; its finished runs."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from malmoi.configs.optim import OptimSettings, ScheduleSettings

RUNS = Path(__file__).parent / "results" / "learning.jsonl"


@dataclass(frozen=True)
class Run:
    """One training, a line of the file of finished runs, and its result."""

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
        """What identifies it."""
        return self.recipe, self.size, self.seed, self.tokens, self.rate


def read_runs(file: Path) -> dict[tuple[str, str, int, int, float], Run]:
    """Return the finished runs in a file, which may be missing; of two lines of one run the later counts."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {run.key: run for run in (Run(**json.loads(line)) for line in lines)}


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
    """How a model is trained; what Malmoi has no setting for is tried here alone."""

    name: str
    global_batch_size: int
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    vocab_size: int = 4096
    dropout: float = 0.0
    document_mask: bool = False
    hf_trainer: bool = False
    embedding_rate: float | None = None
    """Learning rate of embeddings as a multiple of the matrices'; None: the optimizer's own."""
    embedding_std: float | None = 0.02
    """Of the token embeddings' first values; None: 1 / sqrt(n_embd)."""
    zero_output_projections: bool = False
    z_loss: float = 0.0
    """Factor of the squared log-partition that is added to the loss."""
    small_batches_until: float = 0.0
    """Fraction of all tokens that is seen in batches of half the size."""
    short_blocks_until: float = 0.0
    """Fraction of all tokens that is seen in blocks of a quarter of the length."""
    average_from: float = 1.0
    """Fraction of all steps from which on the weights are averaged."""
    split_attention: bool = False
    """Muon orthogonalizes query, key and value separately, as Malmoi's does; else all three as one matrix."""


BASE = Recipe(
    "base", 8, OptimSettings("muon", lr=1e-2, weight_decay=0.0), ScheduleSettings("linear", 20, min_lr_ratio=0.0)
)
"""What the changes below are made to."""
NANOGPT = Recipe("nanogpt", 16, OptimSettings(lr=2e-3), ScheduleSettings(warmup_steps=40))
TUTORIAL = Recipe("tutorial", 64, OptimSettings(lr=5e-5), dropout=0.1, hf_trainer=True)


def changed(name: str, recipe: Recipe = BASE, **fields: Any) -> Recipe:
    """Return `recipe` under another name with other fields; `optim` and `schedule` hold those that change in them."""
    groups = {group: replace(getattr(recipe, group), **fields.pop(group, {})) for group in ("optim", "schedule")}
    return replace(recipe, name=name, **groups, **fields)


ABLATIONS = (
    changed("AdamW at 1e-2", optim={"name": "adamw"}),
    changed("AdamW at 4e-3", optim={"name": "adamw", "lr": 4e-3}),
    changed("query, key, value apart", split_attention=True),
    changed("embeddings at the matrices' rate", embedding_rate=1.0),
    changed("embeddings at 10 times the rate", embedding_rate=10.0),
    changed("output projections zero at first", zero_output_projections=True),
    changed("documents apart", document_mask=True),
    changed("constant rate, last fifth averaged", schedule={"name": "constant"}, average_from=0.8),
    changed("no warm-up", schedule={"warmup_steps": 0}),
    changed("batch 16", global_batch_size=16),
    changed("vocabulary 8,192", vocab_size=8192),
    changed("vocabulary 3,072", vocab_size=3072),
    changed("cosine to a tenth", schedule={"name": "cosine", "min_lr_ratio": 0.1}),
    changed("z-loss 1e-4", z_loss=1e-4),
    changed("blocks of 32 at first", short_blocks_until=0.3),
    changed("batch 16, half at first", global_batch_size=16, small_batches_until=0.3),
    changed("embeddings drawn at 0.1", embedding_std=0.1),
    changed("embeddings drawn at 1/sqrt(width)", embedding_std=None),
    changed("wsd, the last third falling", schedule={"name": "wsd", "decay_ratio": 0.33}),
    changed("rate 2e-2", optim={"lr": 2e-2}),
    changed("rate 5e-3", optim={"lr": 5e-3}),
)
MALMOI = changed("malmoi", split_attention=True, short_blocks_until=0.3)
"""With what helped on every size."""
