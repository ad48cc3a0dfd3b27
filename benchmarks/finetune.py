"""What pre-training is worth to a classifier: the comparison of docs/finetune.md, on NSMC, KorSTS and KorNLI.

    python benchmarks/finetune.py --model runs/demo/model --data FOLDER --out runs/finetune_figures

For each data set four rows on the same test rows: always the most frequent answer; a logistic (for KorSTS: ridge)
regression over words and pairs of words; the model's shape from random weights; and the model. `--limit N` reads the
first N rows of each file. Without `--data` it takes the few hundred rows in the repository, the scored rows to train on
and the examples to test on: enough to see that it runs, too few to compare anything.

FOLDER holds nsmc_train, nsmc_test, korsts_train, korsts_dev, korsts_test, kornli_train and kornli_test as .jsonl.gz, or
under the names of NAMES below. Where a set has no development file, a tenth of its training rows chooses the model.
"""

import gzip
import json
import sys
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, new_parser, parse_options
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from tables import markdown_table

import malmoi
from malmoi.configs.finetune import TaskKind
from malmoi.evaluation.label_metrics import Predictions, label_metrics

SMALL = ROOT / "evaluation" / "fewshot" / "tasks" / "data"
NAMES = {
    "nsmc_train": "nsmc_rebuilt_train",
    "nsmc_test": "nsmc_rebuilt_test",
    "kornli_train": "kornli_xnli_dev",
    "kornli_test": "kornli_xnli_test",
}
"""Other names that a file may have; KorNLI's is its small part translated by people, where the large is not at hand."""
Rows = list[dict[str, Any]]
Scores = list[dict[str, Any]]
"""Name, value, and the ends of the 95% interval."""


@dataclass(frozen=True)
class DataSet:
    """A labeled data set."""

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
class Split:
    """Rows of a data set; the three parts share none."""

    train: Rows
    validation: Rows
    test: Rows

    def save(self, folder: Path) -> dict[str, str]:
        """Write the parts as `malmoi finetune` reads them, and return the files by part."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for part, rows in vars(self).items():
            file = folder / f"{part}.jsonl"
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            files[part] = str(file)
        return files


def read(file: Path, limit: int) -> Rows:
    """Return the first rows of a file, or all with limit 0."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, limit or None)]


def file_named(data: Path, name: str) -> Path | None:
    """Return the file of that name, or of its other one."""
    files = (data / f"{each}.jsonl.gz" for each in (name, NAMES.get(name, name)))
    return next((file for file in files if file.is_file()), None)


def read_split(chosen: DataSet, data: Path | None, limit: int) -> Split:
    parts = ("train", "dev", "test") if data is not None else ("", "dev", "examples")
    names = (f"{chosen.name}_{part}".removesuffix("_") for part in parts)
    train, validation, test = (file_named(data or SMALL, name) for name in names)
    if train is None or test is None:
        sys.exit(f"{data}: no {chosen.name}_train.jsonl.gz or no {chosen.name}_test.jsonl.gz")
    rows = read(train, limit)
    if validation is not None:
        return Split(rows, read(validation, limit), read(test, limit))
    # Rows may be sorted by film or class, so every tenth and not the last tenth.
    return Split([row for number, row in enumerate(rows) if number % 10], rows[::10], read(test, limit))


def baseline(model: Any, chosen: DataSet, split: Split) -> Scores:
    """Fit a model of scikit-learn on words, apart for a pair's two texts, and score it on the test rows."""

    def text_of(row: dict[str, Any]) -> str:
        words = [(place, word) for place, name in enumerate(chosen.fields) for word in str(row[name]).split()]
        return " ".join(f"{place}:{word}" for place, word in words)

    model.fit([text_of(row) for row in split.train], [row[chosen.label] for row in split.train])
    predicted = np.array(model.predict([text_of(row) for row in split.test]))
    labels = np.array([row[chosen.label] for row in split.test])
    if chosen.kind == "similarity":
        return [asdict(each) for each in label_metrics(Predictions("number", predicted, labels.astype(float)))]
    return [asdict(each) for each in label_metrics(Predictions("class", predicted, labels))]


def fine_tuned(settings: dict[str, Any], run: Path, **changes: Any) -> Scores:
    """Fine-tune a model, and return its scores on the test rows."""
    result = malmoi.finetune(malmoi.load_finetune_config(None, {**settings, "run": run}, **changes))
    return next([asdict(score) for score in part.scores] for part in result.files if part.part == "test")


def main() -> None:
    names = [each.name for each in SETS]
    parser = new_parser(__doc__)
    parser.add_argument("--model", required=True, help="folder of the pre-trained model")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_figures"))
    parser.add_argument("--sets", nargs="+", default=names, choices=names)
    parser.add_argument("--limit", type=int, default=0, help="rows of each file; 0: all")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning_rate", type=float, default=6.25e-5, help="of the pre-trained model")
    parser.add_argument("--random_learning_rate", type=float, default=1e-3, help="of the random weights")
    options = parse_options(parser)
    if options.quick:
        options.limit, options.epochs = 40, 1.0
    figures: dict[str, dict[str, Scores]] = {}
    for chosen in [each for each in SETS if each.name in options.sets]:
        split, folder = read_split(chosen, options.data, options.limit), options.out / chosen.name
        is_number = chosen.kind == "similarity"
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
        settings = {
            "init_from": options.model,
            "task": {"kind": chosen.kind, "fields": chosen.fields, "label": chosen.label, **split.save(folder)},
            "train": {"epochs": options.epochs},
            "log": {"trackers": []},
        }
        figures[chosen.name] = {
            "most frequent answer": baseline(DummyRegressor() if is_number else DummyClassifier(), chosen, split),
            "bag of words": baseline(
                make_pipeline(words, Ridge() if is_number else LogisticRegression(max_iter=1000)), chosen, split
            ),
            "random weights": fine_tuned(
                settings, folder / "random", random_init=True, optim={"lr": options.random_learning_rate}
            ),
            "pre-trained": fine_tuned(settings, folder / "pretrained", optim={"lr": options.learning_rate}),
        }
    lines = []
    for name, origins in figures.items():
        for origin, scores in origins.items():
            for score in scores:
                numbers = (score[part] for part in ("value", "low", "high"))
                cells = ("-" if number is None else f"{number:.3f}" for number in numbers)
                lines.append((name, origin, score["name"], *cells))
    print("\n".join(markdown_table(("data", "from", "score", "value", "low", "high"), lines)))
    content = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    (options.out / "figures.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
