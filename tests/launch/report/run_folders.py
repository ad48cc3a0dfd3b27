"""Run folders as training leaves them, without models, and what their reports show."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from malmoi.configs.corpus import CorpusSettings, TokenizerSettings
from malmoi.configs.data import DataSettings
from malmoi.configs.model import ModelSettings
from malmoi.configs.run import RunSettings
from malmoi.configs.train import TrainSettings
from malmoi.train.metrics.records import StepMetrics, ValMetrics, append_metrics
from malmoi.train.run_dir import RunResult, prepare_run, write_result


def step_record(step: int, loss: float = 2.0, skipped: int = 0, **others: float) -> StepMetrics:
    values: dict[str, Any] = {
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_sec": 64.0,
        "mfu": 0.4,
        "data_wait_frac": 0.01,
        "checkpoint_frac": 0.0,
        "eval_frac": 0.0,
        "slowest_rank": 0,
        "slowest_rank_lag": 0.0,
        "peak_mib": 512.0,
    }
    return StepMetrics(step=step, tokens_seen=step * 32, loss=loss, skipped_steps=skipped, **{**values, **others})


def val_record(step: int) -> ValMetrics:
    return ValMetrics(step=step, tokens_seen=step * 32, loss=2.5, ppl=12.2, bpb=1.25, tokens=100)


def write_corpus(file: Path) -> Path:
    texts = [f"문서 {number}. 말모이는 우리말 사전이다. " * (1 + number % 7) for number in range(60)]
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return file


def make_run(
    folder: Path,
    corpus: Path,
    steps: int = 10,
    planned: int = 10,
    vocab_size: int = 600,
    tokenizer: str | None = None,
) -> RunSettings:
    """Make a run folder as pre-training leaves it, without its model."""
    settings = RunSettings(
        run=str(folder),
        corpus=CorpusSettings(input=(str(corpus),)),
        tokenizer=TokenizerSettings(vocab_size=vocab_size, path=tokenizer),
        data=DataSettings(val_fraction=0.2),
        model=ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=16),
        train=TrainSettings(max_steps=planned, global_batch_size=2, micro_batch_size=2),
    )
    prepare_run(settings)
    for step in range(1, steps + 1):
        append_metrics(folder, step_record(step, loss=8.0 / step))
        if step % 5 == 0:
            append_metrics(folder, val_record(step))
    return settings


def finish(settings: RunSettings, samples: Sequence[str]) -> None:
    plain = json.loads(json.dumps(asdict(settings)))
    result = RunResult(
        settings=plain,
        steps=settings.train.max_steps or 0,
        parameters=5240,
        val_loss=2.4,
        bits_per_byte=1.1875,
        prompt="말모이",
        samples=tuple(samples),
    )
    write_result(Path(settings.run), result)


class Outline(HTMLParser):
    """Elements, addresses and visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data

    @property
    def words(self) -> str:
        """The visible text, each stretch of white space as one blank."""
        return " ".join(self.text.split())


def page_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """Visible text, with a blank between two cells."""
    return Outline(page.replace("<", " <")).words


def figures(page: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return [json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for text in found]
