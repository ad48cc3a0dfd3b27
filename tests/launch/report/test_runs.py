"""A run folder is read as it is on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from malmoi.launch.report.runs import PretrainRun, read_run
from malmoi.train.run_dir import record_settings
from tests.launch.report.run_folders import finish, make_run, write_corpus


def read(folder: Path) -> PretrainRun:
    run = read_run(folder, "run")
    assert isinstance(run, PretrainRun)
    return run


@pytest.mark.parametrize("steps", [("step-000004", "step-000010"), ("step-999999", "step-1000000")])
def test_in_a_shared_cache_the_shards_of_the_newest_checkpoint_are_shown(
    tmp_path: Path, steps: tuple[str, str]
) -> None:
    settings = make_run(tmp_path / "run", write_corpus(tmp_path / "corpus.jsonl"))
    cache = tmp_path / "run" / "shards"
    [first] = [file.parent.name for file in cache.glob("*/manifest.json")]
    other_text = write_corpus(tmp_path / "other.jsonl")
    other_text.write_text(other_text.read_text(encoding="utf-8") * 2, encoding="utf-8")
    make_run(tmp_path / "other", other_text)
    [other] = (tmp_path / "other" / "shards").glob("[!.]*")
    other.rename(cache / "another")
    assert "2 shard folders" in read(tmp_path / "run").shards_error
    checkpoints = tmp_path / "elsewhere"
    changed = replace(settings, checkpoint=replace(settings.checkpoint, dir=str(checkpoints)))
    record_settings(tmp_path / "run", changed)
    for name, fingerprint in zip(steps, ("another", first), strict=True):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "state.json").write_text(json.dumps({"state": {"data_fingerprint": fingerprint}}))
    shards = read(tmp_path / "run").shards
    assert shards is not None and shards.manifest.fingerprint == first


def test_the_steps_of_a_run_by_epochs_need_its_shards(tmp_path: Path) -> None:
    settings = make_run(tmp_path / "run", write_corpus(tmp_path / "corpus.jsonl"))
    by_epochs = replace(settings, train=replace(settings.train, max_steps=None, epochs=2.0))
    record_settings(tmp_path / "run", by_epochs)
    run = read(tmp_path / "run")
    assert run.shards is not None
    tokens = run.shards.manifest.train.counts.tokens
    assert run.planned_steps == -(-2 * ((tokens - 16) // 16) // 2)
    next((tmp_path / "run").glob("shards/*/manifest.json")).unlink()
    assert read(tmp_path / "run").planned_steps is None


def test_the_size_of_the_model_is_that_of_the_result_else_what_the_environment_records(tmp_path: Path) -> None:
    settings = make_run(tmp_path / "run", write_corpus(tmp_path / "corpus.jsonl"))
    assert read(tmp_path / "run").parameters is None
    environment = tmp_path / "run" / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "parameters": 77}))
    assert read(tmp_path / "run").parameters == 77
    finish(settings, [])
    assert read(tmp_path / "run").parameters == 5240
