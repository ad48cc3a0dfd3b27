"""Small labeled files, of rows that the repository has, and fine-tuning of a tiny model on them."""

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

from malmoi.configs.finetune import (
    FinetuneEvalSettings,
    FinetuneOptimSettings,
    FinetuneScheduleSettings,
    FinetuneSettings,
    FinetuneTrainSettings,
    TaskKind,
    TaskSettings,
)
from malmoi.configs.outputs import LogSettings
from malmoi.train.data.labeled import Examples, ExampleTokenizer, classes_of, encoded
from malmoi.train.data.labeled_rows import read_rows
from tests.launching import ROOT

DATA = ROOT / "evaluation" / "fewshot" / "tasks" / "data"
FILES: dict[TaskKind, str] = {
    "classification": "nsmc",
    "entailment": "kornli",
    "similarity": "korsts",
    "multiple_choice": "kobest_copa",
}


def rows_of(kind: TaskKind, part: str, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a task's scored file, or of its examples with part `_examples`."""
    with gzip.open(DATA / f"{FILES[kind]}{part}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    """Write `rows` as JSON lines, and return the path."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def settings_for(
    kind: TaskKind,
    model: Path,
    folder: Path,
    max_steps: int = 12,
    eval_every: int = 4,
    lr: float = 1e-3,
    warmup_steps: int = 0,
) -> FinetuneSettings:
    """Return settings of fine-tuning on 64 rows, evaluated on 24 others."""
    folder.mkdir(parents=True, exist_ok=True)
    return FinetuneSettings(
        run=str(folder / "run"),
        init_from=str(model),
        task=TaskSettings(
            kind=kind,
            train=written(folder / "train.jsonl", rows_of(kind, "", 64)),
            validation=written(folder / "validation.jsonl", rows_of(kind, "_examples", 24)),
        ),
        train=FinetuneTrainSettings(global_batch_size=8, micro_batch_size=4, max_steps=max_steps, precision="fp32"),
        optim=FinetuneOptimSettings(lr=lr),
        schedule=FinetuneScheduleSettings(warmup_steps=warmup_steps),
        eval=FinetuneEvalSettings(every=eval_every, baselines=False),
        log=LogSettings(every=1),
    )


def read_examples(file: str, task: TaskSettings, tokenizer: ExampleTokenizer) -> Examples:
    """Return a file's examples, with the classes of its own rows."""
    rows = read_rows(file, task)
    return encoded(rows, file, task, classes_of(rows, task), tokenizer)
