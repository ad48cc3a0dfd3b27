"""Every backend at every world size is the same run, and goes on from what any other wrote."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configs.command_line import settings_as_yaml
from configs.schema import RunSettings
from tests.launching import ROOT, as_flags, environment, metrics, step_losses

BACKENDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
RANKS = (1, 2)
LOSS, NORM = 5e-6, 1e-5


def name_of(backend: str, ranks: int) -> str:
    """`ddp` on one rank is the backend `single`."""
    return f"{backend}-{ranks}"


def run_on(ranks: int, lists: Sequence[Sequence[str]], folder: Path) -> None:
    """Run many `malmoi train` on the same ranks, all of which must succeed."""
    file = folder / f"lists-{ranks}.json"
    file.write_text(json.dumps(lists))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "tests" / "train" / "many_runs.py"), str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-20000:]


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dropout, and documents that leave each rank another number of targets."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = replace(
        tiny_settings,
        model=replace(tiny_settings.model, dropout=0.1),
        data=replace(tiny_settings.data, document_mask=True),
        train=replace(tiny_settings.train, micro_batch=1, keep_last=3),
    )
    file.write_text(settings_as_yaml(settings))
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs of 20 steps: `BACKEND-RANKS`, which accumulate and are saved at step 10 too. Without
    dropout, whose masks belong to micro-batches, `BACKEND-RANKS-whole` do not accumulate, and `accumulating` does.
    """
    folder = tmp_path_factory.mktemp("backends")
    bare = {"model__dropout": 0.0, "train__save_every": 0}
    for ranks in RANKS:
        lists = []
        for backend in BACKENDS:
            asked = "auto" if backend == "ddp" else backend
            name = name_of(backend, ranks)
            lists.append(as_flags(config, run=folder / name, parallel__backend=asked))
            whole = {**bare, "train__micro_batch": 8 // ranks}
            lists.append(as_flags(config, run=folder / f"{name}-whole", parallel__backend=asked, **whole))
        for backend in ("auto", "fsdp2"):
            run = folder / f"{backend}-{ranks}-muon"
            lists.append(as_flags(config, run=run, parallel__backend=backend, train__optimizer="muon"))
        for backend in ("zero3", "fsdp2"):
            run = folder / f"{backend}-{ranks}-checkpointing"
            lists.append(as_flags(config, run=run, parallel__backend=backend, train__activation_checkpointing=True))
        if ranks == 1:
            lists.append(as_flags(config, run=folder / "accumulating", **bare))
        run_on(ranks, lists, folder)
    return folder


def require_same_run(one: Path, other: Path) -> None:
    """Losses, held-out losses and gradient norms of two finished runs, step by step."""
    ours, theirs = ([line for line in metrics(run) if "event" not in line] for run in (one, other))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for name in {"loss", "held_out_loss"} & mine.keys():
            assert abs(mine[name] - its[name]) < LOSS, (one, other, mine["step"])
        if "grad_norm" in mine:
            assert mine["lr"] == its["lr"]
            assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=NORM), (one, other, mine["step"])


@pytest.mark.parametrize(("backend", "ranks"), [each for each in product(BACKENDS, RANKS) if each != ("ddp", 1)])
def test_a_backend_gives_the_curve_of_one_process(undisturbed: Path, backend: str, ranks: int) -> None:
    require_same_run(undisturbed / name_of(backend, ranks), undisturbed / "ddp-1")


@pytest.mark.parametrize(("backend", "ranks"), list(product(BACKENDS, RANKS)))
def test_accumulating_is_one_large_batch_on_every_backend(undisturbed: Path, backend: str, ranks: int) -> None:
    require_same_run(undisturbed / f"{name_of(backend, ranks)}-whole", undisturbed / "accumulating")


@pytest.mark.parametrize("run", ["auto-2-muon", "fsdp2-1-muon", "fsdp2-2-muon"])
def test_muon_on_cut_matrices_is_muon_on_whole_ones(undisturbed: Path, run: str) -> None:
    require_same_run(undisturbed / run, undisturbed / "auto-1-muon")


@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
@pytest.mark.parametrize("ranks", RANKS)
def test_recomputed_activations_change_nothing_where_weights_are_cut(
    undisturbed: Path, backend: str, ranks: int
) -> None:
    require_same_run(undisturbed / f"{backend}-{ranks}-checkpointing", undisturbed / "ddp-1")


def interrupted(finished: Path, folder: Path) -> Path:
    """A copy of a finished run as it stood at step 10."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("step-000020", "model", "result.json"))
    return folder


ALL_PAIRS = list(product(BACKENDS, BACKENDS))
FEWER_RANKS = [(before, after) for before, after in ALL_PAIRS if BACKENDS.index(before) >= BACKENDS.index(after)]
MORE_RANKS = [pair for pair in ALL_PAIRS if pair not in FEWER_RANKS]


@pytest.mark.parametrize(
    ("ranks_before", "ranks_after", "pairs"),
    [
        pytest.param(2, 1, FEWER_RANKS, id="half of the pairs-2-1"),
        pytest.param(1, 2, MORE_RANKS, id="the other half-1-2"),
        pytest.param(2, 1, ALL_PAIRS, id="all-2-1", marks=pytest.mark.soak),
        pytest.param(1, 2, ALL_PAIRS, id="all-1-2", marks=pytest.mark.soak),
    ],
)
def test_every_backend_goes_on_from_every_other_at_another_world_size(
    config: Path, undisturbed: Path, tmp_path: Path, ranks_before: int, ranks_after: int, pairs: list[tuple[str, str]]
) -> None:
    lists, runs = [], []
    for before, after in pairs:
        run = interrupted(undisturbed / name_of(before, ranks_before), tmp_path / f"{before}-to-{after}")
        asked = "auto" if after == "ddp" else after
        lists.append(as_flags(config, run=run, parallel__backend=asked))
        runs.append(run)
    run_on(ranks_after, lists, tmp_path)
    for run in runs:
        events = [line["text"] for line in metrics(run) if line.get("event") == "restart"]
        assert len(events) == 1
        assert events[0].startswith("going on from step 10 ")
        require_same_run(run, undisturbed / "ddp-1")


def test_the_same_backend_and_world_size_goes_on_bit_for_bit(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    lists = []
    for backend in BACKENDS:
        run = interrupted(undisturbed / name_of(backend, 2), tmp_path / backend)
        lists.append(as_flags(config, run=run, parallel__backend="auto" if backend == "ddp" else backend))
    run_on(2, lists, tmp_path)
    for backend in BACKENDS:
        finished = undisturbed / name_of(backend, 2)
        assert step_losses(tmp_path / backend) == step_losses(finished)
        for file in ("checkpoints/step-000020/model.safetensors", "checkpoints/step-000020/optimizer.safetensors"):
            ours, theirs = load_file(tmp_path / backend / file), load_file(finished / file)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), (backend, file)
