"""The result of a fine-tuning run, `finetune.json`; without torch."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malmoi.atomic_io import write_atomic
from malmoi.checked_json import DamagedFileError, checked_json, read_checked_json
from malmoi.checksums import FileRecord
from malmoi.errors import UserError, one_line
from malmoi.evaluation.calibration import Calibration, CalibrationBin
from malmoi.train.run_dir import PREDICTIONS, recorded_files

if TYPE_CHECKING:
    from rich.table import Table

FINETUNE_FILE = "finetune.json"


@dataclass(frozen=True)
class ScoreRecord:
    """A score and its 95% confidence interval, None where it is not defined."""

    name: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ClassRecord:
    """How well a class is found in a file."""

    name: str
    precision: float
    recall: float
    f1: float
    examples: int
    """Of the class."""


@dataclass(frozen=True)
class BaselineRecord:
    """What needs no pre-training, on the same rows; see `malmoi.evaluation.label_baselines`."""

    name: str
    scores: tuple[ScoreRecord, ...]
    note: str = ""
    """What was cut so that it stays quick; empty: nothing."""


@dataclass(frozen=True)
class FileScores:
    """The exported model's scores on a file, by the answers that `transformers`' pipeline gives in fp32."""

    part: str
    """`validation` or `test`."""
    file: str
    examples: int
    loss: float
    """Of the task alone, a mean over examples."""
    scores: tuple[ScoreRecord, ...]
    most_frequent: tuple[ScoreRecord, ...] = ()
    """Scores of always giving the training file's most frequent answer, or its mean."""
    classes: tuple[ClassRecord, ...] = ()
    """Of a task with classes."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """How many examples of each class (row) were given each class (column), in the order of `classes`."""
    baselines: tuple[BaselineRecord, ...] = ()
    """None where the settings leave them out."""
    calibration: Calibration | None = None
    """Of the probabilities of classes or choices."""


@dataclass(frozen=True)
class PredictionRecord:
    """The exported model's answer to a row."""

    place: str
    """`file:line`."""
    texts: tuple[str, ...]
    """Of the row: one, a pair, or a context and its choices."""
    label: str | float
    predicted: str | float
    """A class, the number of a choice from 0, or a number, as the label is."""
    outputs: tuple[float, ...]
    """Probabilities of the classes, as `transformers`' pipeline gives them; else its outputs without a function."""


@dataclass(frozen=True)
class FinetuneResult:
    """A finished fine-tuning run."""

    settings: dict[str, Any]
    steps: int
    """Optimizer steps done, fewer than planned where training stopped early."""
    model_step: int
    """The step of the exported model."""
    examples: int
    """Of the training file."""
    classes: tuple[str, ...]
    """In the order of the model's outputs; empty for similarity."""
    files: tuple[FileScores, ...]
    recorded: tuple[FileRecord, ...] = ()
    """The small files beside it, as they were when it was written; see `malmoi.train.run_dir.recorded_files`."""


def finished_finetuning(folder: Path) -> FinetuneResult | None:
    """Return the result of a run that is complete, or None.

    Raises:
        DamagedFileError: it is not as it was written.
    """
    file, remedy = folder / FINETUNE_FILE, "fine-tune again, which scores and exports anew"
    if not file.is_file():
        return None
    record = read_checked_json(file, remedy)
    try:
        files = tuple(map(_file_scores, record["files"]))
        recorded = tuple(FileRecord(**each) for each in record.get("recorded", ()))
        return FinetuneResult(**{**record, "classes": tuple(record["classes"]), "files": files, "recorded": recorded})
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{file}: damaged ({one_line(error)}); {remedy}") from error


def _file_scores(record: dict[str, Any]) -> FileScores:
    scores = {name: _scores(record.get(name, ())) for name in ("scores", "most_frequent")}
    classes = tuple(ClassRecord(**each) for each in record.get("classes", ()))
    confusion = tuple(map(tuple, record.get("confusion", ())))
    baselines = tuple(
        BaselineRecord(**{**each, "scores": _scores(each["scores"])}) for each in record.get("baselines", ())
    )
    calibrated = record.get("calibration")
    if calibrated is not None:
        bins = tuple(CalibrationBin(**each) for each in calibrated["bins"])
        calibrated = Calibration(**{**calibrated, "bins": bins})
    parts = {"classes": classes, "confusion": confusion, "baselines": baselines, "calibration": calibrated}
    return FileScores(**{**record, **scores, **parts})


def predictions_file(folder: Path, part: str) -> Path:
    """Return where a run keeps the answers to its `validation` or `test` file."""
    return folder / f"{PREDICTIONS}{part}.jsonl"


def write_predictions(folder: Path, part: str, records: Iterable[PredictionRecord]) -> None:
    """Write a line of JSON for each row, in the order of the file, complete or absent."""
    lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    write_atomic(predictions_file(folder, part), "".join(lines).encode())


def read_predictions(file: Path) -> Iterator[PredictionRecord]:
    """Yield the answers of a file that `write_predictions` made.

    Raises:
        UserError: it cannot be read, or a line is not as it was written.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                lists = {name: tuple(record[name]) for name in ("texts", "outputs")}
                yield PredictionRecord(**{**record, **lists})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({one_line(error)}); fine-tune again, which scores anew") from error


def _scores(records: Iterable[dict[str, Any]]) -> tuple[ScoreRecord, ...]:
    return tuple(ScoreRecord(**record) for record in records)


def write_finetuning(folder: Path, result: FinetuneResult) -> None:
    """Write `finetune.json`, which marks the run complete, with a record of the small files beside it."""
    write_atomic(folder / FINETUNE_FILE, checked_json(asdict(replace(result, recorded=recorded_files(folder)))))


def baseline_names(result: FinetuneResult) -> tuple[str, ...]:
    """Return the names of the baselines that any file is scored with, in order."""
    return tuple(dict.fromkeys(each.name for part in result.files for each in part.baselines))


def baseline_scores(part: FileScores, name: str) -> tuple[ScoreRecord, ...]:
    """Return a baseline's scores on a file; none where it has none."""
    return next((each.scores for each in part.baselines if each.name == name), ())


def score_of(scores: Iterable[ScoreRecord], name: str) -> float | None:
    """Return the value of the score of that name, None where there is none."""
    return next((each.value for each in scores if each.name == name), None)


def scores_table(result: FinetuneResult) -> "Table":
    """Return a row a score of each file, beside those of the baselines."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("file", "score"):
        table.add_column(name, no_wrap=True)
    others = baseline_names(result)
    for name in ("value", "95% interval", "majority", *others, "examples"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in result.files:
        for number, score in enumerate(part.scores):
            interval = "-" if score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}"
            first = (part.part, f"{part.examples:,}") if number == 0 else ("", "")
            levels = [score_of(part.most_frequent, score.name)]
            levels += [score_of(baseline_scores(part, name), score.name) for name in others]
            shown = ["-" if level is None else f"{level:.4f}" for level in levels]
            table.add_row(first[0], score.name, f"{score.value:.4f}", interval, *shown, first[1])
        if part.calibration is not None:
            none = ["-"] * (1 + len(others))
            table.add_row("", "calibration error", f"{part.calibration.error:.4f}", "-", *none, "")
    return table
