"""What a finished fine-tuning leaves in `finetune.json`; needs no torch."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from data_prep.files import write_whole

FINETUNE_FILE = "finetune.json"


@dataclass(frozen=True)
class ScoreRecord:
    """A score and its 95% confidence interval, none where it is not defined."""

    name: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class FileScores:
    """How the exported model does on a file."""

    part: str
    """`validation` or `test`."""
    file: str
    examples: int
    loss: float
    """Of the task alone, a mean over examples."""
    scores: tuple[ScoreRecord, ...]
    most_frequent: tuple[ScoreRecord, ...] = ()
    """Scores of always giving the training file's most frequent answer, or its mean."""


@dataclass(frozen=True)
class FinetuneResult:
    """A finished fine-tuning."""

    settings: dict[str, Any]
    steps: int
    """Updates done, fewer than planned where training ended early."""
    model_step: int
    """The update after which the exported model stood."""
    examples: int
    """Of the training file."""
    classes: tuple[str, ...]
    """In the order of the model's outputs; none for similarity."""
    files: tuple[FileScores, ...]


def finished_finetuning(folder: Path) -> FinetuneResult | None:
    """The result of a fine-tuning that is complete, or none."""
    file = folder / FINETUNE_FILE
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    files = tuple(
        FileScores(**{**part, **{name: _scores(part.get(name, ())) for name in ("scores", "most_frequent")}})
        for part in record["files"]
    )
    return FinetuneResult(**{**record, "classes": tuple(record["classes"]), "files": files})


def _scores(records: Iterable[dict[str, Any]]) -> tuple[ScoreRecord, ...]:
    return tuple(ScoreRecord(**record) for record in records)


def write_finetuning(folder: Path, result: FinetuneResult) -> None:
    """Write `finetune.json`, which says that the fine-tuning is complete."""
    content = json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / FINETUNE_FILE, content.encode())


def scores_table(result: FinetuneResult) -> Table:
    """A row a score of each file."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("file", "score"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "95% interval", "commonest answer", "examples"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in result.files:
        for number, score in enumerate(part.scores):
            interval = "-" if score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}"
            first = (part.part, f"{part.examples:,}") if number == 0 else ("", "")
            level = next((f"{each.value:.4f}" for each in part.most_frequent if each.name == score.name), "-")
            table.add_row(first[0], score.name, f"{score.value:.4f}", interval, level, first[1])
    return table
