"""Llama and Qwen3 are the same run on every backend, and resume from what another wrote."""

import shutil
from pathlib import Path

import pytest

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from tests.launching import as_flags, metrics, with_settings
from tests.train.ranks import run_many

BACKENDS = ("zero2", "zero3", "fsdp2")
SHAPES: dict[str, dict[str, object]] = {
    "llama": {"model__n_kv_head": 1},
    # An output matrix of its own, and heads that are wider than the hidden size gives.
    "qwen3": {"model__tie_embeddings": False, "model__head_dim": 24, "optim__name": "muon"},
}
RESUMED = {"llama": ("zero3", "fsdp2"), "qwen3": ("fsdp2", "ddp")}
"""The backend that writes a checkpoint, and the one that resumes from it."""
MUON = ("ddp", "fsdp2")
LOSS, NORM = 5e-6, 1e-5


@pytest.fixture(scope="module")
def runs(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs: `ARCHITECTURE-single`, `-BACKEND` on two ranks, and `-resumed`."""
    folder = tmp_path_factory.mktemp("architectures")
    lists: dict[int, list[list[str]]] = {1: [], 2: []}
    resumed = []
    for name, shape in SHAPES.items():
        settings = with_settings(
            tiny_settings,
            model__architecture=name,
            data__document_mask=True,
            train__micro_batch_size=1,
            train__max_steps=8,
            eval__every=0,
            checkpoint__every=4,
            checkpoint__keep_last=2,
            **shape,
        )
        config = folder / f"{name}.yaml"
        config.write_text(settings_as_yaml(settings), encoding="utf-8")
        lists[1].append(as_flags(config, run=folder / f"{name}-single"))
        for backend in MUON if "optim__name" in shape else BACKENDS:
            lists[2].append(as_flags(config, run=folder / f"{name}-{backend}", parallel__backend=backend))
        resumed.append(as_flags(config, run=folder / f"{name}-resumed", parallel__backend=RESUMED[name][1]))
    for ranks, each in lists.items():
        run_many(ranks, each, folder)
    for name, (before, _) in RESUMED.items():
        left_out = shutil.ignore_patterns("step-000008", "model", "result.json")
        shutil.copytree(folder / f"{name}-{before}", folder / f"{name}-resumed", ignore=left_out)
    run_many(2, resumed, folder)
    return folder


PAIRS = [(name, each) for name in SHAPES for each in (MUON if "optim__name" in SHAPES[name] else BACKENDS)]


@pytest.mark.parametrize(("name", "run"), [*PAIRS, *((name, "resumed") for name in SHAPES)])
def test_an_architecture_gives_the_curve_of_one_process(runs: Path, name: str, run: str) -> None:
    ours, theirs = ([x for x in metrics(runs / f"{name}-{each}") if "train/loss" in x] for each in (run, "single"))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, 9))
    for mine, its in zip(ours, theirs, strict=True):
        assert abs(mine["train/loss"] - its["train/loss"]) < LOSS
        assert mine["train/grad_norm"] == pytest.approx(its["train/grad_norm"], rel=NORM)
    events = [line["text"] for line in metrics(runs / f"{name}-{run}") if line.get("event") == "resume"]
    assert [text.split(" (")[0] for text in events] == ["resuming from step 4"] * (run == "resumed")
