"""The results of `malmoi fewshot` on disk: one JSON file a task. Needs no torch."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import stdev
from typing import Any

from malmoi.atomic_io import write_atomic
from malmoi.errors import UserError

RESULT_SUFFIX = ".json"
SAMPLES_SUFFIX = ".samples.jsonl"


@dataclass(frozen=True)
class Score:
    """One metric of one run."""

    metric: str
    score: float
    document_stderr: float | None
    """Standard error over documents; none for metrics that are not a mean over them."""


@dataclass(frozen=True)
class Sample:
    """What a model was asked and answered: one document at one number of examples, chosen by one seed."""

    shots: int
    seed: int
    document: int
    """Number of the document, from 0, among those scored."""
    prompt: str
    """With the examples that it kept."""
    right: tuple[str, ...]
    """Right answers."""
    answer: str | None
    """The choice of highest log-likelihood, or the text written; none where the likelihood of one target is asked."""
    choices: tuple[str, ...]
    """Texts whose likelihood was computed; none where the answer is written."""
    loglikelihoods: tuple[float, ...]
    """Of each after the prompt, natural logarithms summed over its tokens."""
    scores: dict[str, float]
    """Of the document, by metric; without those that only a whole set has."""


@dataclass(frozen=True)
class ShotRun:
    """A task at one number of examples, chosen by one seed."""

    shots: int
    seed: int
    scores: tuple[Score, ...]
    shortened_prompts: int
    """Prompts that lost examples to fit the model's context."""
    dropped_examples: int
    """Examples that they lost."""


@dataclass(frozen=True)
class Baseline:
    """What a metric is to be compared with."""

    metric: str
    chance: float | None
    """Of a random choice, or of a random example's answer; none where neither is defined."""
    majority: float | None
    """Of the most frequent answer among the examples."""


@dataclass(frozen=True)
class Point:
    """A metric at one number of examples."""

    shots: int
    mean: float
    """Over seeds."""
    stderr: float | None
    """Standard error of the mean over seeds; none with one seed."""
    seeds: int


@dataclass(frozen=True)
class TaskResult:
    """All runs of one task with one model."""

    task: str
    model: str
    documents: int
    """Documents scored."""
    left_out: int
    """Documents left out, since their prompt exceeds the model's context even without examples."""
    limit: int | None
    baselines: tuple[Baseline, ...]
    runs: tuple[ShotRun, ...]
    license: str
    """Of the task's data."""
    versions: tuple[tuple[str, str], ...]
    """Of the libraries that the scores depend on, by name."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the task's metrics."""
        return tuple(baseline.metric for baseline in self.baselines)

    def baseline(self, metric: str) -> Baseline:
        """Return the baselines of a metric."""
        return next(baseline for baseline in self.baselines if baseline.metric == metric)

    def curve(self, metric: str) -> tuple[Point, ...]:
        """Return a metric at each number of examples."""
        points = []
        for shots in sorted({run.shots for run in self.runs}):
            found = [
                score.score for run in self.runs if run.shots == shots for score in run.scores if score.metric == metric
            ]
            mean = sum(found) / len(found)
            stderr = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
            points.append(Point(shots, mean, stderr, len(found)))
        return tuple(points)

    def as_dict(self) -> dict[str, Any]:
        """Return a result for JSON, with the mean and standard error of each metric beside the runs."""
        curves = [{"metric": metric, **asdict(point)} for metric in self.metrics for point in self.curve(metric)]
        return {**asdict(self), "versions": dict(self.versions), "means": curves}


def score_text(value: float) -> str:
    """Return a score for a table; a perplexity of a model that has diverged may be of any size."""
    if abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.1e}"


def describe_fit(results: Sequence[TaskResult]) -> list[str]:
    """Return lines on what did not fit the model's context."""
    lines = []
    for result in results:
        if result.left_out:
            lines.append(
                f"{result.task}: {result.left_out:,} documents left out, longer than the model's context by themselves"
            )
        for shots in sorted({run.shots for run in result.runs}):
            runs = [run for run in result.runs if run.shots == shots]
            shortened, lost = sum(r.shortened_prompts for r in runs), sum(r.dropped_examples for r in runs)
            if shortened:
                named = f"{result.task}, {shots} shot{'s' * (shots > 1)}"
                prompts = result.documents * len(runs)
                lines.append(
                    f"{named}: {shortened:,} of {prompts:,} prompts outgrew the context and lost {lost:,} examples"
                )
    return lines


def write_result(folder: Path, result: TaskResult) -> Path:
    """Write the file of one task atomically, and return its path."""
    file = folder / f"{result.task}{RESULT_SUFFIX}"
    write_atomic(file, json.dumps(result.as_dict(), ensure_ascii=False, indent=1).encode() + b"\n")
    return file


def samples_file(folder: Path, task: str) -> Path:
    """Return where the samples of a task are, if they are logged."""
    return folder / f"{task}{SAMPLES_SUFFIX}"


def write_samples(folder: Path, task: str, samples: Iterable[Sample]) -> Path:
    """Write a line of JSON for each sample of one task atomically, and return the path."""
    file = samples_file(folder, task)
    lines = (json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
    write_atomic(file, "".join(lines).encode())
    return file


def read_samples(folder: Path, task: str) -> Iterator[Sample]:
    """Yield the samples of a task that `write_samples` wrote.

    Raises:
        UserError: the file cannot be read, or a line is no valid sample.
    """
    file = samples_file(folder, task)
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                lists = {name: tuple(record[name]) for name in ("right", "choices", "loglikelihoods")}
                yield Sample(**{**record, **lists})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: no valid samples of `malmoi fewshot` ({error!r}); delete it and run the task again"
        ) from error


def read_results(folder: Path) -> tuple[TaskResult, ...]:
    """Return the results in a folder, sorted by name of task; none where there is no such folder.

    Raises:
        UserError: a file is no valid result.
    """
    return tuple(_read(file) for file in sorted(folder.glob(f"*{RESULT_SUFFIX}")))


def _read(file: Path) -> TaskResult:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        plain = {entry.name: read[entry.name] for entry in fields(TaskResult)}
        runs = tuple(
            ShotRun(**{**run, "scores": tuple(Score(**score) for score in run["scores"])}) for run in read["runs"]
        )
        baselines = tuple(Baseline(**baseline) for baseline in read["baselines"])
        result = TaskResult(
            **{**plain, "runs": runs, "baselines": baselines, "versions": tuple(read["versions"].items())}
        )
        if not all(point.seeds for metric in result.metrics for point in result.curve(metric)) or not runs:
            raise ValueError("no runs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{file}: no valid result of `malmoi fewshot` ({error!r}); delete it and run the task again"
        ) from error
    return result


def check_same_model(folder: Path, model: str) -> None:
    """Refuse a folder that holds another model's results.

    Raises:
        UserError: it does.
    """
    others: Sequence[TaskResult] = [result for result in read_results(folder) if result.model != model]
    if others:
        raise UserError(f"{folder}: holds results of the model {others[0].model}; choose another folder with --out")
