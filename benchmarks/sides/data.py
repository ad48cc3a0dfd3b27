"""The tokens that all sides train on, and the run that Malmoi makes of them."""

import argparse
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from configs.command_line import parse_settings
from configs.schema import RunSettings
from sides.work import Work
from train.run_folder import prepare_run

CORPUS = "package:data_prep/demo_text"


@dataclass(frozen=True)
class Shape:
    """A model and its micro-batch."""

    layers: int
    width: int
    vocab: int
    block: int
    batch: int


SHAPES = {
    "tiny": Shape(2, 64, 4_000, 64, 4),
    "14M": Shape(6, 384, 10_000, 128, 16),
    "124M": Shape(12, 768, 50_257, 1_024, 8),
}


def add_shape_options(parser: argparse.ArgumentParser, shape: str) -> None:
    """`--shape`, and one option for each number of it."""
    parser.add_argument("--shape", choices=SHAPES, default=shape)
    for name in ("layers", "width", "vocab", "block", "batch"):
        parser.add_argument(f"--{name}", type=int, help="none: the shape's")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: only to see that it runs")


def asked_shape(options: argparse.Namespace) -> Shape:
    chosen = SHAPES["tiny" if options.quick else options.shape]
    numbers = {name: getattr(options, name) for name in ("layers", "width", "vocab", "block", "batch")}
    return replace(chosen, **{name: number for name, number in numbers.items() if number is not None})


def prepared(folder: Path, shape: Shape, device: str, precision: str) -> Work:
    """Train a tokenizer, build the shards, write the YAML; compile is off in what is returned.

    Where the repository's text does not give a vocabulary of that size, its most frequent tokens keep their ids and the
    model's embedding is what has the rows: a step's arithmetic does not look at the tokens.
    """
    train = {
        "global_batch": shape.batch,
        "micro_batch": shape.batch,
        "steps": 1_000_000,
        "precision": precision,
        "save_every": 0,
        "evaluate_every": 0,
        "log_every": 10,
        "evaluate_tokens": 1_000,
    }
    plain = {
        "run": str(folder / "run"),
        "corpus": {"input": [CORPUS]},
        "tokenizer": {"vocab_size": shape.vocab, "sample_bytes": 10_000_000},
        "data": {"cache": str(folder / "cache")},
        "model": {
            "n_layer": shape.layers,
            "n_head": max(1, shape.width // 64),
            "n_embd": shape.width,
            "block_size": shape.block,
        },
        "train": train,
        "sampling": {"max_new_tokens": 1},
    }
    config = folder / "malmoi.yaml"
    config.write_text(yaml.safe_dump(plain))
    run = prepare_run(parse_settings(RunSettings, ["--config", str(config)], "benchmark", ""))
    # The sides' runs lie beside each other and share one tokenizer.
    plain["tokenizer"] = {"path": str(run.tokenizer)}
    config.write_text(yaml.safe_dump(plain))
    tokens = sorted(run.sources[0].folder.glob("train*.bin"))[0]
    vocab = json.loads((run.sources[0].folder / "manifest.json").read_text())["vocab_size"]
    if vocab != shape.vocab:
        sys.exit(f"the tokenizer has {vocab} tokens in place of {shape.vocab}")
    return Work(
        **vars(shape), tokens=str(tokens), config=str(config), device=device, precision=precision, compile=False
    )


def set_threads(threads: int | None) -> int:
    """Threads of every side from here on; none: a thread a core that this process may use."""
    count = threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(count)
    return count
