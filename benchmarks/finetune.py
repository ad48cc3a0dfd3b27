"""What pre-training is worth to a classifier: the comparison of docs/finetune.md, on NSMC, KorSTS and KorNLI.

    python benchmarks/finetune.py --model runs/demo/model --data FOLDER --out runs/finetune_figures
    python benchmarks/finetune.py --data FOLDER --sets nsmc kornli korsts sib200 --out runs/baseline_figures

For each data set on the same test rows: always the most frequent answer; the baselines of `malmoi finetune`, words and
character n-grams; and with `--model` the model's shape from random weights, and the model. `--limit N` reads the first
N rows of each file. Without `--data` it takes the few hundred rows in the repository, the scored rows to train on and
the examples to test on: enough to see that it runs, too few to compare anything.

FOLDER holds nsmc_train, nsmc_test, korsts_train, korsts_dev, korsts_test, kornli_train, kornli_test and so forth as
.jsonl.gz or .jsonl, or under the names of NAMES below. Where a set has no development file, a tenth of its training
rows chooses the model.
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
from tables import markdown_table

import malmoi
from malmoi.configs.finetune import TaskKind, TaskSettings
from malmoi.evaluation.label_baselines import fit_baselines
from malmoi.evaluation.label_metrics import Predictions, label_metrics
from malmoi.train.data.labeled import classes_of
from malmoi.train.data.labeled_rows import read_rows
from malmoi.train.tasks.classification import ANSWERS

SMALL = ROOT / "evaluation" / "fewshot" / "tasks" / "data"
NAMES = {
    "nsmc_train": "nsmc_rebuilt_train",
    "nsmc_test": "nsmc_rebuilt_test",
    "kornli_train": "kornli_xnli_dev",
    "kornli_test": "kornli_xnli_test",
    **{f"sib200_{part}": f"sib200_topic_{part}" for part in ("train", "dev", "test")},
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
    DataSet("sib200", "classification", ("text",), "label"),
    DataSet("kobest_sentineg", "classification", ("text",), "label"),
    DataSet("kobest_boolq", "entailment", ("text", "question"), "label"),
    DataSet("kobest_copa", "multiple_choice", ("text", "question", "choices"), "label"),
)
WITH_MODEL = ("nsmc", "korsts", "kornli")
"""Sets that are fine-tuned on where none are named."""


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
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, limit or None)]


def file_named(data: Path, name: str) -> Path | None:
    """Return the file of that name, or of its other one."""
    names = (name, NAMES.get(name, name))
    files = (data / f"{each}{suffix}" for each in names for suffix in (".jsonl.gz", ".jsonl"))
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


def baselines(chosen: DataSet, files: dict[str, str]) -> dict[str, Scores]:
    """Return the scores of what needs no pre-training, as `malmoi finetune` computes them, on the test rows."""
    kind = ANSWERS[chosen.kind]
    task = TaskSettings(chosen.kind, files["train"], fields=chosen.fields, label=chosen.label)
    train, test = read_rows(files["train"], task), read_rows(files["test"], task)
    numbers = {name: number for number, name in enumerate(classes_of(train, task))} if kind == "class" else {}
    learned, right = (np.array([numbers.get(str(row.answer), row.answer) for row in rows]) for rows in (train, test))
    learned, right = (each.astype(float if kind == "number" else int) for each in (learned, right))
    constant = learned.mean() if kind == "number" else np.bincount(learned).argmax()
    found = {"most frequent answer": _scores(Predictions(kind, np.full(len(right), constant), right))}
    for fitted in fit_baselines(kind, [row.texts(chosen.kind) for row in train], learned):
        predicted = fitted.predict([row.texts(chosen.kind) for row in test])
        found[fitted.name] = _scores(Predictions(kind, predicted, right))
        if fitted.note:
            print(f"{chosen.name}, {fitted.name}: {fitted.note}", file=sys.stderr)
    return found


def _scores(predictions: Predictions) -> Scores:
    return [asdict(each) for each in label_metrics(predictions)]


def fine_tuned(settings: dict[str, Any], run: Path, **changes: Any) -> Scores:
    """Fine-tune a model, and return its scores on the test rows."""
    result = malmoi.finetune(malmoi.load_finetune_config(None, {**settings, "run": run}, **changes))
    return next([asdict(score) for score in part.scores] for part in result.files if part.part == "test")


def main() -> None:
    names = [each.name for each in SETS]
    parser = new_parser(__doc__)
    parser.add_argument("--model", help="folder of the pre-trained model; left out: the baselines alone")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_figures"))
    parser.add_argument("--sets", nargs="+", default=WITH_MODEL, choices=names)
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
        files = split.save(folder)
        figures[chosen.name] = baselines(chosen, files)
        if options.model is None:
            continue
        settings = {
            "init_from": options.model,
            "task": {"kind": chosen.kind, "fields": chosen.fields, "label": chosen.label, **files},
            "train": {"epochs": options.epochs},
            "eval": {"baselines": False},
            "log": {"trackers": []},
        }
        figures[chosen.name] |= {
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
