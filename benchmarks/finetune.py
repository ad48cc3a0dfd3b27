"""What pre-training is worth to a classifier: the comparison of docs/finetune.md, on NSMC, KorSTS and KorNLI.

    python benchmarks/finetune.py --model runs/demo/model --data FOLDER --out runs/finetune_figures

For each data set four rows on the same test rows: always the most frequent answer; a logistic (for KorSTS: ridge)
regression over words and pairs of words; the model's shape from random weights; and the model. `--limit N` reads the
first N rows of each file. Without `--data` it takes the few hundred rows that lie in the repository, the scored rows to
learn from and the examples to test on: enough to see that it runs, too few to compare anything.

FOLDER holds nsmc_train, nsmc_test, korsts_train, korsts_dev, korsts_test, kornli_train and kornli_test as .jsonl.gz, or
under the names of NAMES below. Where a set has no development file, a tenth of its training rows chooses the model.
"""

import argparse
import gzip
import json
import sys
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from configs.finetune_settings import FinetuneLoopSettings, FinetuneSettings, TaskKind, TaskSettings
from inference.label_scores import Estimate, Labelled, label_scores
from train.finetune import finetune
from train.finetune_result import finished_finetuning

SMALL = Path(__file__).parent.parent / "inference" / "tasks" / "data"
NAMES = {
    "nsmc_train": "nsmc_rebuilt_train",
    "nsmc_test": "nsmc_rebuilt_test",
    "kornli_train": "kornli_xnli_dev",
    "kornli_test": "kornli_xnli_test",
}
"""Other names that a file may have; KorNLI's is its small part translated by people, where the large is not at hand."""


@dataclass(frozen=True)
class DataSet:
    """A labelled data set."""

    name: str
    kind: TaskKind
    fields: tuple[str, ...]
    label: str


SETS = (
    DataSet("nsmc", "classification", ("text",), "label"),
    DataSet("korsts", "similarity", ("sentence1", "sentence2"), "score"),
    DataSet("kornli", "entailment", ("premise", "hypothesis"), "label"),
)


@dataclass(frozen=True)
class Files:
    """Rows of a data set, written out as `malmoi finetune` reads them."""

    train: Path
    validation: Path
    test: Path


def read(file: Path, limit: int) -> list[dict[str, Any]]:
    """The first rows of a file, or all with limit 0."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, limit or None)]


def found(data: Path, name: str) -> Path | None:
    """The file of that name, or of its other one."""
    for each in (name, NAMES.get(name, name)):
        if (data / f"{each}.jsonl.gz").is_file():
            return data / f"{each}.jsonl.gz"
    return None


def prepared(chosen: DataSet, data: Path | None, limit: int, folder: Path) -> Files:
    """Training, validation and test rows that share none."""
    if data is None:
        train, test = SMALL / f"{chosen.name}.jsonl.gz", SMALL / f"{chosen.name}_examples.jsonl.gz"
        validation = None
    else:
        named = {part: found(data, f"{chosen.name}_{part}") for part in ("train", "dev", "test")}
        if named["train"] is None or named["test"] is None:
            sys.exit(f"{data}: no {chosen.name}_train.jsonl.gz or no {chosen.name}_test.jsonl.gz")
        train, validation, test = named["train"], named["dev"], named["test"]
    learnt = read(train, limit)
    if validation is not None:
        chosen_by = read(validation, limit)
    else:
        # Rows may be sorted by film or class, so every tenth and not the last tenth.
        chosen_by, learnt = learnt[::10], [row for number, row in enumerate(learnt) if number % 10]
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(*(folder / f"{part}.jsonl" for part in ("train", "validation", "test")))
    for file, rows in ((files.train, learnt), (files.validation, chosen_by), (files.test, read(test, limit))):
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return files


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows that `prepared` wrote."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def majority(chosen: DataSet, files: Files) -> tuple[Estimate, ...]:
    """Always the most frequent answer of training, or for numbers its mean."""
    train, test = (np.array([row[chosen.label] for row in rows_of(file)]) for file in (files.train, files.test))
    if chosen.kind == "similarity":
        return label_scores(Labelled("number", np.full(len(test), train.mean()), test.astype(float)))
    names, counts = np.unique(train, return_counts=True)
    return label_scores(Labelled("class", np.full(len(test), names[counts.argmax()]), test))


def bag_of_words(chosen: DataSet, files: Files) -> tuple[Estimate, ...]:
    """Regression over TF-IDF of words and pairs of words, those of a pair's two texts told apart."""

    def text_of(row: dict[str, Any]) -> str:
        words = [(place, word) for place, name in enumerate(chosen.fields) for word in str(row[name]).split()]
        return " ".join(f"{place}:{word}" for place, word in words)

    train, test = rows_of(files.train), rows_of(files.test)
    is_number = chosen.kind == "similarity"
    regression = Ridge() if is_number else LogisticRegression(max_iter=1000)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+"), regression)
    model.fit([text_of(row) for row in train], [row[chosen.label] for row in train])
    answered = np.array(model.predict([text_of(row) for row in test]))
    right = np.array([row[chosen.label] for row in test])
    if is_number:
        return label_scores(Labelled("number", answered, right.astype(float)))
    return label_scores(Labelled("class", answered, right))


def fine_tuned(
    chosen: DataSet, files: Files, model: str, fresh: bool, folder: Path, loop: FinetuneLoopSettings
) -> tuple[Estimate, ...]:
    """`malmoi finetune`, scored on the test rows."""
    task = TaskSettings(
        kind=chosen.kind,
        train=str(files.train),
        validation=str(files.validation),
        test=str(files.test),
        fields=chosen.fields,
        label=chosen.label,
    )
    code = finetune(FinetuneSettings(run=str(folder), init_from=model, fresh_weights=fresh, task=task, train=loop))
    result = finished_finetuning(folder)
    if code or result is None:
        sys.exit(f"{folder}: stopped; the same command goes on")
    (test,) = [part for part in result.files if part.part == "test"]
    return tuple(Estimate(each.name, each.value, each.low, each.high) for each in test.scores)


def main() -> None:
    """Measure all rows, print the table and write it as JSON."""
    names = [each.name for each in SETS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the pre-trained model")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_figures"))
    parser.add_argument("--sets", nargs="+", default=names, choices=names)
    parser.add_argument("--limit", type=int, default=0, help="rows of each file; 0: all")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning_rate", type=float, default=6.25e-5, help="of the pre-trained model")
    parser.add_argument("--fresh_learning_rate", type=float, default=1e-3, help="of the random weights")
    asked = parser.parse_args()
    loop = FinetuneLoopSettings(epochs=asked.epochs, learning_rate=asked.learning_rate, trackers=())
    fresh = replace(loop, learning_rate=asked.fresh_learning_rate)
    figures: dict[str, dict[str, tuple[Estimate, ...]]] = {}
    for chosen in [each for each in SETS if each.name in asked.sets]:
        folder = asked.out / chosen.name
        files = prepared(chosen, asked.data, asked.limit, folder)
        figures[chosen.name] = {
            "most frequent answer": majority(chosen, files),
            "bag of words": bag_of_words(chosen, files),
            "random weights": fine_tuned(chosen, files, asked.model, True, folder / "random", fresh),
            "pre-trained": fine_tuned(chosen, files, asked.model, False, folder / "pretrained", loop),
        }
    table = Table("data", "from", "score", "value", "95% interval")
    for name, rows in figures.items():
        for origin, estimates in rows.items():
            for each in estimates:
                interval = "-" if each.low is None or each.high is None else f"{each.low:.3f} to {each.high:.3f}"
                table.add_row(name, origin, each.name, f"{each.value:.3f}", interval)
    Console(width=100).print(table)
    plain = {
        name: {origin: [asdict(e) for e in each] for origin, each in rows.items()} for name, rows in figures.items()
    }
    (asked.out / "figures.json").write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
