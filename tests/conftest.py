"""Real parts that many tests share: a small corpus, and one tiny run trained on it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share the machine with each other

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from malmoi.configs.corpus import CorpusSettings, TokenizerSettings
from malmoi.configs.data import DataSettings
from malmoi.configs.model import ModelSettings
from malmoi.configs.optim import OptimSettings, ScheduleSettings
from malmoi.configs.outputs import CheckpointSettings, EvalSettings, LogSettings, SamplingSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings

DEMO_TEXT = Path(__file__).parent.parent / "data_prep" / "demo_text"


def demo_texts(name: str, count: int) -> list[str]:
    """The first texts of one of the demo's files."""
    with gzip.open(DEMO_TEXT / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for _, line in zip(range(count), file, strict=False)]


def small_corpus() -> list[str]:
    """About 130 KB of Korean: films' reviews and paragraphs."""
    return [text[:600] for text in demo_texts("film_reviews", 60)] + demo_texts("encyclopaedia", 150)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under xdist a module's tests stay in one process, for what they share, and those of the one Slurm cluster too."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]  # xdist is untyped
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::")[0]
            return "tests/launch/cluster" if module.startswith("tests/launch/cluster/") else module

    return ByModule(config, log)


@pytest.fixture(scope="session")
def korean_texts() -> list[str]:
    """The texts of `small_corpus`."""
    return small_corpus()


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory, korean_texts: list[str]) -> Path:
    """`korean_texts` as JSON lines."""
    file = tmp_path_factory.mktemp("corpus") / "korean.jsonl"
    file.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in korean_texts), encoding="utf-8"
    )
    return file


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> RunSettings:
    """Settings of a run that takes seconds. Every test that trains shares its tokenizer and shards."""
    shared = tmp_path_factory.mktemp("shared")
    settings = RunSettings(
        run=str(shared / "run"),
        corpus=CorpusSettings(input=(str(corpus_file),)),
        tokenizer=TokenizerSettings(vocab_size=2000),
        data=DataSettings(cache=str(shared / "cache"), val_fraction=0.1),
        model=ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=32),
        train=TrainSettings(global_batch_size=8, micro_batch_size=4, max_steps=20, precision="fp32"),
        optim=OptimSettings(lr=1e-2),
        schedule=ScheduleSettings(warmup_steps=4),
        checkpoint=CheckpointSettings(every=10),
        eval=EvalSettings(every=10),
        log=LogSettings(every=1),
        generate=SamplingSettings(max_new_tokens=8),
    )
    from malmoi.data_prep.pipeline.build import build_tokenizer

    folder = build_tokenizer(settings.corpus, settings.tokenizer, shared / "tokenizer", show_progress=False)
    return replace(settings, tokenizer=replace(settings.tokenizer, path=str(folder)))


@pytest.fixture(scope="session")
def finished_run(tiny_settings: RunSettings) -> Path:
    """The folder of `tiny_settings`' run, trained to its end."""
    from malmoi.train.pretrain import pretrain

    assert pretrain(tiny_settings) == 0
    return Path(tiny_settings.run)


@pytest.fixture(scope="session")
def finished_shards(tiny_settings: RunSettings, finished_run: Path) -> Path:
    """The shards of `finished_run`; those of other tests are beside them."""
    from malmoi.train.run_dir import prepare_run

    return prepare_run(tiny_settings).sources[0].folder
