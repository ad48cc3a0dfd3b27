"""`train.micro_batch auto` tries the model that trains, and on a processor nothing that would end the process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train.session
from configs.schema import ModelSettings, RunSettings, TrainSettings
from train.kernels import configured
from train.micro_batch import block_trial, kept_bytes, trial
from train.model import SpecialTokenIds, TrainedGPT2, new_model
from train.run import run

SHAPE = ModelSettings(n_layer=3, n_head=4, n_embd=32, block_size=128)
TRAIN = TrainSettings(compile=False)
CPU = torch.device("cpu")


def bytes_of_a_sample(train: TrainSettings) -> int:
    model = configured(new_model(SHAPE, 500, SpecialTokenIds(0, 1, 2, 3), 1), train, "fp32", document_mask=False)
    ids = torch.zeros((1, SHAPE.block_size), dtype=torch.int64)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return kept_bytes(lambda: model(ids, ids), own)


def test_what_a_sample_keeps_depends_on_what_the_model_computes_with() -> None:
    plain = bytes_of_a_sample(TRAIN)
    eager = bytes_of_a_sample(replace(TRAIN, attention="eager"))
    less = bytes_of_a_sample(replace(TRAIN, activation_checkpointing=True))
    weights_of_attention = 4 * SHAPE.n_layer * SHAPE.n_head * SHAPE.block_size**2
    assert eager - plain > 0.9 * weights_of_attention
    assert less < plain / 3


def test_a_processor_is_not_asked_for_more_than_is_free() -> None:
    model, tried = torch.nn.Linear(8, 8), []

    def nats_of(size: int) -> Tensor:
        tried.append(size)
        return model(torch.ones(size, 8)).relu().sum()

    fits = trial(model, nats_of, "fp32", CPU)
    assert not fits(10**12)
    assert fits(4)
    assert tried == [1, 4]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_that_is_tried_computes_as_the_one_that_trains(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, bool]] = []

    def looked_at(model: TrainedGPT2, task: Any, *rest: Any) -> Callable[[int], bool]:
        masked = task.read(0, 1).begins is not None
        seen.append((model.config._attn_implementation, model.transformer.h[0].gradient_checkpointing, masked))
        return block_trial(model, task, *rest)

    monkeypatch.setattr(train.session, "block_trial", looked_at)
    loop = replace(tiny_settings.train, micro_batch="auto", steps=1, attention="eager", activation_checkpointing=True)
    settings = replace(tiny_settings, run=str(tmp_path / "run"), train=loop)
    assert run(replace(settings, data=replace(settings.data, document_mask=True))) == 0
    assert seen == [("eager", True, True)]
