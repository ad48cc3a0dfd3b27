"""Small labelled files, of the rows that lie in the repository, and fine-tuning of a tiny model on them."""

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

from configs.finetune_settings import FinetuneLoopSettings, FinetuneSettings, TaskKind, TaskSettings
from tests.launching import ROOT
from train.example_tokens import ExampleTokenizer
from train.examples import Examples, classes_of, encoded, read_rows

DATA = ROOT / "inference" / "tasks" / "data"
FILES: dict[TaskKind, str] = {
    "classification": "nsmc",
    "entailment": "kornli",
    "similarity": "korsts",
    "multiple_choice": "kobest_copa",
}


def rows_of(kind: TaskKind, part: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a task's scored file, or of its examples with part `_examples`."""
    with gzip.open(DATA / f"{FILES[kind]}{part}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    """`rows` as a file of JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def settings_for(kind: TaskKind, model: Path, folder: Path, **loop: Any) -> FinetuneSettings:
    """Fine-tuning on 64 rows, looked at by 24 others every four steps."""
    folder.mkdir(parents=True, exist_ok=True)
    train = {"global_batch": 8, "micro_batch": 4, "steps": 12, "learning_rate": 1e-3, "log_every": 1}
    return FinetuneSettings(
        run=str(folder / "run"),
        init_from=str(model),
        task=TaskSettings(
            kind=kind,
            train=written(folder / "train.jsonl", rows_of(kind, "", 64)),
            validation=written(folder / "validation.jsonl", rows_of(kind, "_examples", 24)),
        ),
        train=FinetuneLoopSettings(**{**train, "evaluate_every": 4, "precision": "fp32", **loop}),
    )


def read_examples(file: str, task: TaskSettings, tokenizer: ExampleTokenizer) -> Examples:
    """A file's examples, with the classes of its own rows."""
    rows = read_rows(file, task)
    return encoded(rows, file, task, classes_of(rows, task), tokenizer)
