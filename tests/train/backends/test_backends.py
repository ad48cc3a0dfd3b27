"""Every backend at any number of ranks is the same run, and resumes from what any other wrote."""

import json
import shutil
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import malmoi
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from tests.launching import as_flags, metrics, step_losses, with_settings
from tests.train.ranks import run_many

BACKENDS = tuple(name for name in malmoi.BACKENDS if name != "single")
HSDP = "hsdp"
"""fsdp2 with two copies of the model."""
RANKS = (1, 2)
LAID_OUT = [*product(BACKENDS, RANKS), (HSDP, 2)]
OTHER_OPTIMIZERS = [name for name in malmoi.OPTIMIZERS if name != "adamw"]
FITTING = list(product(OTHER_OPTIMIZERS, (*BACKENDS, HSDP)))
"""Optimizers besides AdamW, each with the backends that it can step: all."""
LOSS, NORM = 5e-6, 1e-5
GPT2_VOCABULARY = 50_257
WIDE_BACKENDS = ("ddp", "zero2", "fsdp2")


def name_of(backend: str, ranks: int) -> str:
    """`ddp` on one rank is the backend `single`."""
    return f"{backend}-{ranks}"


def asked_of(backend: str) -> dict[str, object]:
    """The settings that give `backend` at any number of ranks."""
    if backend == HSDP:
        return {"parallel__backend": "fsdp2", "parallel__replicas": 2}
    return {"parallel__backend": "auto" if backend == "ddp" else backend}


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dropout, and documents that leave each rank another number of target tokens."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = with_settings(
        tiny_settings,
        model__dropout=0.1,
        data__document_mask=True,
        train__micro_batch_size=1,
        checkpoint__keep_last=3,
    )
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs of 20 steps: `BACKEND-RANKS`, which accumulate and are saved at step 10 too. Without
    dropout, whose masks belong to micro-batches, `BACKEND-RANKS-full` do not accumulate, and `accumulating` does.
    """
    folder = tmp_path_factory.mktemp("backends")
    bare = {"model__dropout": 0.0, "checkpoint__every": 0}
    for ranks in RANKS:
        lists = []
        for backend in [backend for backend, count in LAID_OUT if count == ranks]:
            name, asked = name_of(backend, ranks), asked_of(backend)
            lists.append(as_flags(config, run=folder / name, **asked))
            full = {**bare, "train__micro_batch_size": 8 // ranks}
            lists.append(as_flags(config, run=folder / f"{name}-full", **asked, **full))
        for optimizer, backend in [pair for pair in FITTING if (pair[1], ranks) in LAID_OUT]:
            run = folder / f"{name_of(backend, ranks)}-{optimizer}"
            lists.append(as_flags(config, run=run, **asked_of(backend), optim__name=optimizer))
        for backend in ("zero3", "fsdp2"):
            run = folder / f"{backend}-{ranks}-checkpointing"
            lists.append(as_flags(config, run=run, parallel__backend=backend, train__activation_checkpointing=True))
        if ranks == 1:
            lists.append(as_flags(config, run=folder / "accumulating", **bare))
        run_many(ranks, lists, folder)
    return folder


def require_same_run(one: Path, other: Path) -> None:
    """Losses, validation losses and gradient norms of two finished runs, step by step."""
    ours, theirs = ([line for line in metrics(run) if "event" not in line] for run in (one, other))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for name in {"train/loss", "val/loss"} & mine.keys():
            assert abs(mine[name] - its[name]) < LOSS, (one, other, mine["step"])
        if "train/grad_norm" in mine:
            assert mine["train/lr"] == its["train/lr"]
            norm = pytest.approx(its["train/grad_norm"], rel=NORM)
            assert mine["train/grad_norm"] == norm, (one, other, mine["step"])


@pytest.mark.parametrize(("backend", "ranks"), [each for each in LAID_OUT if each != ("ddp", 1)])
def test_a_backend_gives_the_curve_of_one_process(undisturbed: Path, backend: str, ranks: int) -> None:
    require_same_run(undisturbed / name_of(backend, ranks), undisturbed / "ddp-1")


@pytest.fixture(scope="module")
def real_shape(tiny_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs of GPT-2's width and vocabulary, one block deep: `single` on one rank, others on two.
    Gradients are clipped, so that a wrong norm is a wrong step."""
    folder = tmp_path_factory.mktemp("real")
    assert tiny_settings.tokenizer.path is not None
    tokenizer = shutil.copytree(tiny_settings.tokenizer.path, folder / "tokenizer")
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<unused{number}>": number for number in range(len(vocabulary), GPT2_VOCABULARY)}
    (tokenizer / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = with_settings(
        tiny_settings,
        tokenizer__path=str(tokenizer),
        data__cache=str(folder / "cache"),
        model__n_layer=1,
        model__n_head=12,
        model__n_embd=768,
        data__val_fraction=0.005,
        train__global_batch_size=2,
        train__micro_batch_size=1,
        train__max_steps=4,
        optim__lr=1e-3,
        checkpoint__every=0,
        eval__every=0,
    )
    file = folder / "real.yaml"
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    for ranks, backends in ((1, ("single",)), (2, WIDE_BACKENDS)):
        run_many(ranks, [as_flags(file, run=folder / each, **asked_of(each)) for each in backends], folder)
        for each in backends:
            shutil.rmtree(folder / each / "checkpoints")  # half a gigabyte
    return folder


@pytest.mark.parametrize("backend", WIDE_BACKENDS)
def test_a_backend_gives_the_curve_of_one_process_at_gpt2s_width_and_vocabulary(real_shape: Path, backend: str) -> None:
    assert all(line["train/grad_norm"] > 1 for line in metrics(real_shape / "single") if "train/loss" in line)
    require_same_run(real_shape / backend, real_shape / "single")


@pytest.mark.parametrize(("backend", "ranks"), LAID_OUT)
def test_accumulating_is_one_large_batch_on_every_backend(undisturbed: Path, backend: str, ranks: int) -> None:
    require_same_run(undisturbed / f"{name_of(backend, ranks)}-full", undisturbed / "accumulating")


@pytest.mark.parametrize(
    ("optimizer", "backend", "ranks"),
    [
        (*pair, ranks)
        for pair, ranks in product(FITTING, RANKS)
        if (pair[1], ranks) in LAID_OUT and (pair[1], ranks) != ("ddp", 1)
    ],
)
def test_each_optimizer_gives_the_curve_of_one_process(
    undisturbed: Path, optimizer: str, backend: str, ranks: int
) -> None:
    """Muon on sharded matrices among them."""
    require_same_run(undisturbed / f"{name_of(backend, ranks)}-{optimizer}", undisturbed / f"ddp-1-{optimizer}")


@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
@pytest.mark.parametrize("ranks", RANKS)
def test_activation_checkpointing_changes_nothing_where_weights_are_sharded(
    undisturbed: Path, backend: str, ranks: int
) -> None:
    require_same_run(undisturbed / f"{backend}-{ranks}-checkpointing", undisturbed / "ddp-1")


def interrupted(finished: Path, folder: Path) -> Path:
    """A copy of a finished run as it was at step 10."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("step-000020", "model", "result.json"))
    return folder


ALL_PAIRS = list(product(BACKENDS, BACKENDS))
EACH_ONCE = list(pairwise((*BACKENDS, BACKENDS[0])))
"""Each backend's checkpoint is read by the next."""
BACKWARDS = [(after, before) for before, after in EACH_ONCE]
FROM_HSDP, TO_HSDP = list(product((HSDP,), BACKENDS)), list(product(BACKENDS, (HSDP,)))


@pytest.mark.parametrize(
    ("ranks_before", "ranks_after", "pairs"),
    [
        pytest.param(2, 1, [*EACH_ONCE, *FROM_HSDP[::3]], id="each into the next-2-1"),
        pytest.param(1, 2, [*BACKWARDS, *TO_HSDP[1::3]], id="each into the one before-1-2"),
        pytest.param(2, 1, [*ALL_PAIRS, *FROM_HSDP], id="all-2-1", marks=pytest.mark.soak),
        pytest.param(1, 2, [*ALL_PAIRS, *TO_HSDP], id="all-1-2", marks=pytest.mark.soak),
    ],
)
def test_every_backend_resumes_from_every_other_at_another_number_of_ranks(
    config: Path, undisturbed: Path, tmp_path: Path, ranks_before: int, ranks_after: int, pairs: list[tuple[str, str]]
) -> None:
    lists, runs = [], []
    for before, after in pairs:
        run = interrupted(undisturbed / name_of(before, ranks_before), tmp_path / f"{before}-to-{after}")
        lists.append(as_flags(config, run=run, **asked_of(after)))
        runs.append(run)
    run_many(ranks_after, lists, tmp_path)
    for run in runs:
        events = [line["text"] for line in metrics(run) if line.get("event") == "resume"]
        assert len(events) == 1
        assert events[0].startswith("resuming from step 10 ")
        require_same_run(run, undisturbed / "ddp-1")


@pytest.mark.parametrize("optimizer", OTHER_OPTIMIZERS)
def test_each_optimizer_resumes_from_another_backend_and_number_of_ranks(
    config: Path, undisturbed: Path, tmp_path: Path, optimizer: str
) -> None:
    lists, runs = [], []
    for before, after in EACH_ONCE:
        run = interrupted(undisturbed / f"{name_of(before, 2)}-{optimizer}", tmp_path / f"{before}-to-{after}")
        lists.append(as_flags(config, run=run, **asked_of(after), optim__name=optimizer))
        runs.append(run)
    run_many(1, lists, tmp_path)
    for run in runs:
        require_same_run(run, undisturbed / f"ddp-1-{optimizer}")


def test_the_same_backend_and_number_of_ranks_resumes_bit_for_bit(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    runs = [(name_of(backend, 2), backend, "adamw") for backend in (*BACKENDS, HSDP)]
    runs += [(f"{name_of(backend, 2)}-{optimizer}", backend, optimizer) for optimizer, backend in FITTING]
    lists = []
    for name, backend, optimizer in runs:
        run = interrupted(undisturbed / name, tmp_path / name)
        lists.append(as_flags(config, run=run, **asked_of(backend), optim__name=optimizer))
    run_many(2, lists, tmp_path)
    for name, _, _ in runs:
        assert step_losses(tmp_path / name) == step_losses(undisturbed / name)
        for file in ("checkpoints/step-000020/model.safetensors", "checkpoints/step-000020/optimizer.safetensors"):
            ours, theirs = load_file(tmp_path / name / file), load_file(undisturbed / name / file)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), (name, file)


@pytest.mark.soak
@pytest.mark.parametrize("optimizer", malmoi.OPTIMIZERS)
def test_two_copies_of_two_shards_each_give_the_curve_of_one_process(
    config: Path, undisturbed: Path, tmp_path: Path, optimizer: str
) -> None:
    """From the start, and from a checkpoint of two ranks without copies."""
    finished = undisturbed / ("fsdp2-2" if optimizer == "adamw" else f"fsdp2-2-{optimizer}")
    runs = [tmp_path / "new", interrupted(finished, tmp_path / "resumed")]
    run_many(4, [as_flags(config, run=run, **asked_of(HSDP), optim__name=optimizer) for run in runs], tmp_path)
    for run in runs:
        require_same_run(run, undisturbed / ("ddp-1" if optimizer == "adamw" else f"ddp-1-{optimizer}"))
