"""FSDP2 never has the full model on a rank: not when it starts, and not in its gradients."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import ParallelSettings, TrainSettings
from malmoi.train.backends import BACKENDS, Backend, BackendInputs
from malmoi.train.backends.start import start_ranks
from malmoi.train.builder import built_model
from malmoi.train.models import MODELS
from malmoi.train.pretrain import pretrain
from tests.launching import step_losses, with_settings
from tests.train.ranks import on_two_ranks
from tests.train.training_models import new_gpt2

GPT2 = MODELS["gpt2"]
SMALL = ModelSettings(n_layer=2, n_head=3, n_embd=33, block_size=31)
"""None of its sizes can be halved."""
LARGE = ModelSettings(n_layer=24, n_head=8, n_embd=512, block_size=64)
SMALL_VOCABULARY, LARGE_VOCABULARY = 500, 20_032
"""The large one's embedding is more than what the allocator keeps for the next step (`malloc.LARGE`)."""
WAYS = {"fsdp2": ParallelSettings("fsdp2"), "hsdp": ParallelSettings("fsdp2", replicas=2)}
WAYS["offload"] = replace(WAYS["fsdp2"], offload=True)


def new_backend(parallel: ParallelSettings, shape: ModelSettings, vocab_size: int) -> Backend:
    model, deferred = built_model(parallel, lambda: new_gpt2(shape, vocab_size, 3))
    assert deferred is not None
    env = start_ranks(TrainSettings(precision="fp32"), OptimSettings(), parallel)
    return BACKENDS["fsdp2"].build(BackendInputs(env, model, GPT2, OptimSettings(), 1, 1, deferred))


def write_weights(rank: int, folder: Path) -> None:
    for name, parallel in WAYS.items():
        backend = new_backend(parallel, SMALL, SMALL_VOCABULARY)
        weights = {key: tensor.clone() for key, tensor in backend.state_tensors()}
        held = sum(
            parameter.to_local().numel() for parameter in backend.model.parameters() if isinstance(parameter, DTensor)
        )
        torch.save((weights, held), folder / f"{name}-{rank}.pt")


def test_each_rank_makes_its_shard_of_the_weights_of_one_process(tmp_path: Path) -> None:
    on_two_ranks(write_weights, tmp_path)
    expected = dict(new_gpt2(SMALL, SMALL_VOCABULARY, 3).named_parameters())
    size = sum(parameter.numel() for parameter in expected.values())
    for name in WAYS:
        seen = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)]
        for weights, _ in seen:
            assert weights.keys() == {f"model.{key}" for key in expected}
            assert all(torch.equal(weights[f"model.{key}"], value) for key, value in expected.items()), name
        assert sum(held for _, held in seen) == (2 * size if name == "hsdp" else size)


def peak_bytes() -> int:
    """Return the most memory that this process has had since it was last asked to forget it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def write_peak(rank: int, folder: Path) -> None:
    new_backend(WAYS["fsdp2"], SMALL, SMALL_VOCABULARY)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = peak_bytes()
    backend = new_backend(WAYS["fsdp2"], LARGE, LARGE_VOCABULARY)
    (folder / f"peak-{rank}").write_text(json.dumps(peak_bytes() - before), encoding="utf-8")
    del backend


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak")
def test_a_rank_of_two_starts_in_less_memory_than_the_model_takes(tmp_path: Path) -> None:
    on_two_ranks(write_peak, tmp_path)
    full = 4 * GPT2.num_params(LARGE, LARGE_VOCABULARY)
    for rank in range(2):
        peak = json.loads((tmp_path / f"peak-{rank}").read_text(encoding="utf-8"))
        # Its half, the embedding while it is cut, and what the allocator leaves between blocks; with all of the model
        # made first it would be one and a half.
        assert peak < 0.9 * full, (peak / 2**20, full / 2**20)


def test_the_micro_batch_is_computed_and_what_it_begins_from_read_where_the_model_is_never_whole(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    """The corpus is far smaller than memory, so all samples of a step are one micro-batch."""
    settings = with_settings(
        tiny_settings,
        init_from=str(finished_run / "model"),
        tokenizer__path=None,
        train__max_steps=3,
        train__micro_batch_size=8,
        train__global_batch_size=8,
        eval__every=0,
    )
    assert pretrain(replace(settings, run=str(tmp_path / "single"))) == 0
    sharded = with_settings(settings, parallel__backend="fsdp2", train__micro_batch_size="auto")
    assert pretrain(replace(sharded, run=str(tmp_path / "fsdp2"))) == 0
    ours, theirs = step_losses(tmp_path / "fsdp2"), step_losses(tmp_path / "single")
    assert len(ours) == 3
    assert ours == pytest.approx(theirs, abs=5e-6)
